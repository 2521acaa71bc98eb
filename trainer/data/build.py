"""From the configuration to the data it names."""

from collections.abc import Callable

from trainer.config import BinaryConfig, Config, CustomDataConfig, DataConfig, TextConfig
from trainer.data.binary import binary
from trainer.data.dataset import Data
from trainer.data.text import example_text, text
from trainer.errors import UserError
from trainer.imports import call, load


def build_data(config: DataConfig, *, local_rank: int, barrier: Callable[[], None]) -> Data:
    """Return the configured data. Called by every rank.

    Args:
        config: Which data.
        local_rank: The rank's number on its node; 0 makes what the ranks of a node share.
        barrier: Waits until every rank has called it. Each rank calls it once, unless it raises.

    Raises:
        UserError: The data is missing, unreadable or too short, or the user's own target is not sound.
    """
    if isinstance(config, TextConfig):
        return text(config, local_rank=local_rank, barrier=barrier)
    if isinstance(config, BinaryConfig):
        data = binary(config)
    elif isinstance(config, CustomDataConfig):
        data = call(load(config.target, "data.target"), config.target, "data", **config.options)
        if not isinstance(data, Data):
            raise UserError(
                f"data.target={config.target} returned {type(data).__name__}: "
                "it must return a trainer.data.dataset.Data"
            )
    else:
        raise UserError(f"data.name={config.name} is none of text, binary, custom")
    barrier()
    return data


def example_data(config: Config) -> Data:
    """Return a few samples of the types and shapes of the configured data, without reading it.

    Raises:
        UserError: As `build_data`, for data that only its files or its target know.
    """
    if isinstance(config.data, TextConfig):
        return example_text(config.data, config.plan.vocabulary)
    return build_data(config.data, local_rank=0, barrier=lambda: None)
