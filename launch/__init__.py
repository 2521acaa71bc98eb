"""Set-up of the environment that the trainer runs in: `install/`, and a container file that uses it."""
