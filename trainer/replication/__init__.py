"""What keeps the replicas of one model together: averaging gradients, sharding the optimizer."""
