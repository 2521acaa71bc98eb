"""Where a run's folder is: the one that the user gives, or a new one that no other run has."""

from collections.abc import Sequence
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any, Protocol

from trainer.config.schema import Config
from trainer.errors import UserError

_RUNS = Path("runs")


class Ranks(Protocol):
    """All ranks of a launch, as far as they must agree on a folder."""

    rank: int

    def all_gather_objects(self, value: Any) -> list[Any]:
        """Return the values of all ranks by rank."""


def resolve_run_dir(asked: str | None, ranks: Ranks) -> Path:
    """Return the folder of a run, or of a sweep's runs. Called by every rank; all return the same.

    Args:
        asked: What the user gives, `run.dir`: it stays as it is, so that a run can resume. None for a new
            folder, `runs/<time>`, which rank 0 makes: of several launches in one second, each gets its own.
        ranks: All ranks.

    Raises:
        UserError: The new folder cannot be made; on every rank alike.
    """
    if asked is not None:
        return Path(asked)
    made, problem = "", ""
    if ranks.rank == 0:
        try:
            made = str(_new_folder(_RUNS))
        except OSError as error:
            problem = f"run.dir={_RUNS}/<time> cannot be made: {error}"
    made, problem = ranks.all_gather_objects((made, problem))[0]
    if problem:
        raise UserError(problem)
    return Path(made)


def _new_folder(parent: Path) -> Path:
    """Make a folder named after the time; a number follows where another run has taken that name."""
    parent.mkdir(parents=True, exist_ok=True)
    time = datetime.now().astimezone().strftime("%Y-%m-%d_%H-%M-%S")
    for number in count(1):
        folder = parent / (time if number == 1 else f"{time}_{number}")
        try:
            folder.mkdir()  # fails where it exists: of two that try at once, one makes it
        except FileExistsError:
            continue
        return folder
    raise AssertionError  # the count does not end


def place_sweep(configs: Sequence[Config], record: str, ranks: Ranks) -> None:
    """Give the runs of a sweep numbered folders in one folder, with Hydra's record beside them.

    Args:
        configs: The configurations of the runs, which all ask for the same `run.dir`; it is replaced.
        record: What `multirun.yaml` will say.
        ranks: All ranks.

    Raises:
        UserError: The folder cannot be made or written.
    """
    parents = {config.run.dir: resolve_run_dir(config.run.dir, ranks) for config in configs}
    for number, config in enumerate(configs):
        config.run.dir = str(parents[config.run.dir] / str(number))
    if ranks.rank == 0:
        for parent in parents.values():
            try:
                parent.mkdir(parents=True, exist_ok=True)
                (parent / "multirun.yaml").write_text(record)
            except OSError as error:
                raise UserError(f"run.dir={parent} cannot be written: {error}") from error
