"""Builds the configured data in two phases: prepare once per node, then load on every rank."""

from typing import Any, Protocol

from trainer.config.check import check_part
from trainer.config.registry import chosen, import_builder
from trainer.config.schema import DataConfig
from trainer.data.dataset import Data
from trainer.errors import UserError


class Ranks(Protocol):
    """The part of all ranks of a launch that loading data needs.

    Attributes:
        local_rank: This rank's number on its node.
    """

    local_rank: int

    def all_gather_objects(self, value: Any) -> list[Any]:
        """Return the values of all ranks, by rank."""


def load_data(config: DataConfig, ranks: Ranks | None = None) -> Data:
    """Return the configured data; every rank calls this.

    Some kinds of data need preparation, such as writing files that the ranks of a node share. One rank of
    each node does that while the others wait, here and nowhere else.

    Args:
        config: The data's configuration.
        ranks: All ranks; None if this process is alone.

    Raises:
        UserError: The data is missing, unreadable or too short, or a custom target is invalid. If a rank
            raises it while preparing, every rank raises it.
    """
    choice = chosen("data", config)
    if choice.prepare is not None:
        check_part(config, "data.")
        problem = _prepare(choice.prepare, config) if ranks is None or ranks.local_rank == 0 else None
        problems = [problem] if ranks is None else ranks.all_gather_objects(problem)
        for first in filter(None, problems):
            raise UserError(first)
    return build_data(config)


def build_data(config: DataConfig) -> Data:
    """Return the configured data, which is prepared on this node.

    Raises:
        UserError: As `load_data`.
    """
    check_part(config, "data.")
    data: Data = import_builder(chosen("data", config).build)(config)
    return data


def example_data(config: DataConfig, vocabulary: int | None = None) -> Data:
    """Return a few samples with the types and shapes of the configured data.

    Reads no files if the kind of data can make examples without them; else this is `load_data`.

    Args:
        config: The data's configuration.
        vocabulary: The number of distinct tokens of the data; None: that of its tokenizer.

    Raises:
        UserError: As `load_data`.
    """
    choice = chosen("data", config)
    if choice.example is None:
        return load_data(config)
    data: Data = import_builder(choice.example)(config, vocabulary)
    return data


def _prepare(path: str, config: DataConfig) -> str | None:
    """Prepare the data on this node; return the message of a `UserError`, for all ranks to raise.

    Any other exception is raised at once, and aborts the other ranks even though they wait.
    """
    try:
        import_builder(path)(config)
    except UserError as error:
        return str(error)
    return None
