"""What executes a schedule: the engine, a stage's layers, the transports."""
