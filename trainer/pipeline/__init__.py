"""The parts that execute a schedule: the engine, a stage's layers, the transports."""
