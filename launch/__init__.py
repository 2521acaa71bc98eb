"""What starts the trainer somewhere: the set-up of its environment, and the launchers of clusters."""
