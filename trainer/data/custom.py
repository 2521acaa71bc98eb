"""Custom data, by import path."""

from trainer.config.import_path import call
from trainer.config.import_path import load as load_target
from trainer.config.schema import CustomDataConfig
from trainer.data.dataset import Data
from trainer.errors import UserError


def prepare(config: CustomDataConfig) -> None:
    """Call the configured `prepare`, if any, with the options of the target.

    Raises:
        UserError: It cannot be imported, or does not accept the options.
    """
    if config.prepare is not None:
        function = load_target(config.prepare, "data.prepare")
        call(function, config.prepare, "data.prepare", **config.options)


def load(config: CustomDataConfig) -> Data:
    """Return the data that the configured target makes.

    Raises:
        UserError: The target cannot be imported or called, or does not return data.
    """
    data = call(load_target(config.target, "data.target"), config.target, "data.target", **config.options)
    if not isinstance(data, Data):
        raise UserError(
            f"data.target={config.target} returned {type(data).__name__}: "
            "it must return a trainer.data.dataset.Data"
        )
    return data
