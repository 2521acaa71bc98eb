"""The configuration: its schema, its ranges, how Hydra composes it."""
