"""From the configuration to the replication strategy it names."""

from trainer.config.registry import chosen, import_builder
from trainer.replication.replication import Parts, Replication


def build_replication(parts: Parts) -> Replication:
    """Return the configured strategy for this rank. Called by every rank.

    Raises:
        UserError: A custom target cannot be imported or called, or is not a strategy.
    """
    update = parts.config.update
    strategy: Replication = import_builder(chosen("update", update).build)(update, parts)
    return strategy
