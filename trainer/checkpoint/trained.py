"""The weights that a run has trained, for commands that use them and train no further."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from trainer.checkpoint.checkpoint import Checkpoint
from trainer.checkpoint.folders import candidates
from trainer.checkpoint.schema import DamagedError
from trainer.config.schema import Config, HFConfig
from trainer.errors import UserError
from trainer.models.model import Model
from trainer.pipeline.layer import BuiltLayer

_log = logging.getLogger(__name__)


class Ranks(Protocol):
    """All ranks of a launch, as far as they must load the same weights."""

    rank: int

    def all_gather_objects(self, value: Any) -> list[Any]:
        """Return the values of all ranks by rank."""


def load_trained(config: Config, layers: Sequence[BuiltLayer], model: Model, ranks: Ranks) -> str:
    """Load the weights that the configuration names into a rank's layers; every rank calls this.

    They are those of `checkpoint.resume`, if that is a path; else of the newest whole checkpoint in
    `run.dir`; without a run those in the folder of a Hugging Face model, which it was built with. Where an
    optimizer evaluates other weights than it trains, they are the ones to evaluate.

    Args:
        config: The configuration.
        layers: The layers that this rank holds.
        model: The model.
        ranks: All ranks.

    Returns:
        Where they come from, in words.

    Raises:
        UserError: There are none, or they do not fit the model.
    """
    folder, resume = config.run.dir, config.checkpoint.resume
    if folder is None and resume in ("auto", "none"):
        if isinstance(config.model, HFConfig) and config.model.load == "weights":
            return config.model.path
        raise UserError(
            "nothing names trained weights: give run.dir=RUN, checkpoint.resume=CHECKPOINT, or model=hf "
            "model.path=FOLDER"
        )
    if folder is None and resume != "auto":
        found = candidates(resume, Path())
    else:
        found = candidates("auto" if resume == "none" else resume, Path(str(folder)) / "checkpoints")
    names = ranks.all_gather_objects([str(path) for path in found])[0]  # a network's disk may list files late
    if not names:
        raise UserError(f"run.dir={folder} has no checkpoint: it has trained nothing yet")
    return _first_whole([Path(name) for name in names], layers, model, ranks)


def _first_whole(paths: Sequence[Path], layers: Sequence[BuiltLayer], model: Model, ranks: Ranks) -> str:
    """Load the first checkpoint that no rank finds damaged."""
    problem = None
    for path in paths:
        problem, step = None, 0
        try:
            checkpoint = Checkpoint(path)
            step = checkpoint.progress().step
            checkpoint.check_model(model.parts)
            checkpoint.restore_weights(layers, checkpoint.layers)
        except DamagedError as error:
            problem = str(error)
        problem = next(filter(None, ranks.all_gather_objects(problem)), None)
        if problem is None:
            return f"{path}, step {step}"
        if ranks.rank == 0:
            print(f"trainer: passed over a checkpoint: {problem}", file=sys.stderr, flush=True)
    raise UserError(str(problem))
