"""A custom replication strategy, by import path."""

from trainer.config.import_path import call, load
from trainer.config.update import CustomUpdateConfig
from trainer.errors import UserError
from trainer.replication.replication import Parts, Replication


def custom(config: CustomUpdateConfig, parts: Parts) -> Replication:
    """Return what the configured target makes of the parts.

    Raises:
        UserError: The target cannot be imported or called, or does not return a `Replication`.
    """
    strategy = call(
        load(config.target, "update.target"), config.target, "update.target", parts, **config.options
    )
    if not isinstance(strategy, Replication):
        raise UserError(
            f"update.target={config.target} returned {type(strategy).__name__}: "
            "it must return a trainer.replication.replication.Replication"
        )
    return strategy
