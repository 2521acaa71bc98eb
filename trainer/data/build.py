"""From the configuration to the data it names, in two phases: prepare once a node, load on every rank."""

from typing import Any, Protocol

from trainer.config.check import check_part
from trainer.config.registry import chosen, import_builder
from trainer.config.schema import DataConfig
from trainer.data.dataset import Data
from trainer.errors import UserError


class Ranks(Protocol):
    """All ranks of a launch, as far as loading data takes them.

    Attributes:
        local_rank: This rank's number on its node.
    """

    local_rank: int

    def all_gather_objects(self, value: Any) -> list[Any]:
        """Return the values of all ranks by rank."""


def load_data(config: DataConfig, ranks: Ranks | None = None) -> Data:
    """Return the configured data. Called by every rank.

    Where the kind of data has something to prepare, such as files that the ranks of a node share, one rank
    of each node does so while the others wait: here, and nowhere else.

    Args:
        config: Which data.
        ranks: All ranks; None where this process is alone.

    Raises:
        UserError: The data is missing, unreadable or too short, or a custom target is not sound. If it is
            raised while a rank prepares, every rank raises the same.
    """
    choice = chosen("data", config)
    check_part(config, "data.")
    if choice.prepare is not None:
        problem = _prepare(choice.prepare, config) if ranks is None or ranks.local_rank == 0 else None
        problems = [problem] if ranks is None else ranks.all_gather_objects(problem)
        for first in filter(None, problems):
            raise UserError(first)
    data: Data = import_builder(choice.build)(config)
    return data


def example_data(config: DataConfig, vocabulary: int | None = None) -> Data:
    """Return a few samples of the types and shapes of the configured data.

    Where the kind of data can make them without its files, it reads none; else this is `load_data`.

    Args:
        config: Which data.
        vocabulary: The number of distinct tokens that it will have; None: what its tokenizer has.

    Raises:
        UserError: As `load_data`.
    """
    choice = chosen("data", config)
    if choice.example is None:
        return load_data(config)
    data: Data = import_builder(choice.example)(config, vocabulary)
    return data


def _prepare(path: str, config: DataConfig) -> str | None:
    """Prepare the data on this node; return what the user got wrong, for all ranks to raise.

    Any other exception is raised at once, and ends the other ranks although they wait.
    """
    try:
        import_builder(path)(config)
    except UserError as error:
        return str(error)
    return None
