"""Finds out, after the first step, whether a run could be resumed: while nothing is lost yet."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from trainer.checkpoint.optimizer_state import Shared, agreed, check_storable
from trainer.errors import UserError
from trainer.pipeline.layer import BuiltLayer


class Ranks(Protocol):
    """All ranks of a launch."""

    def all_gather_objects(self, value: Any) -> list[Any]:
        """Return the values of all ranks, by rank."""


def check_resumable(
    layers: Sequence[BuiltLayer],
    optimizer: torch.optim.Optimizer | None,
    replication: Mapping[str, Any],
    ranks: Ranks,
) -> None:
    """Return if checkpoints can hold the state of a run, as it is after a step. Called by every rank.

    Args:
        layers: This rank's layers.
        optimizer: This rank's optimizer.
        replication: The state of its replication strategy.
        ranks: All ranks.

    Raises:
        UserError: On every rank alike: what cannot be saved.
    """
    problem, shared = None, Shared({}, {}, {})
    try:
        json.dumps(replication, allow_nan=False)
        shared = check_storable(layers, optimizer)
    except UserError as error:
        problem = str(error)
    except (TypeError, ValueError) as error:
        problem = f"the state of this run's update strategy cannot be saved in a checkpoint: {error}"
    everyone = ranks.all_gather_objects((problem, shared))
    for theirs, _ in everyone:
        if theirs is not None:
            raise UserError(theirs)
    agreed([theirs for _, theirs in everyone])
