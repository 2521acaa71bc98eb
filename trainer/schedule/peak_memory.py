"""What a schedule keeps alive: memory that forwards hold until their backwards are done."""

from collections.abc import Sequence
from dataclasses import dataclass

from trainer.schedule.actions import COMPLETES_WEIGHT_GRADIENT, Kind, Schedule


@dataclass(frozen=True)
class StageBytes:
    """The bytes that a stage holds for one micro-batch.

    Attributes:
        kept: From its forward to its backward.
        deferred: From the first part of a split backward to the second.
        backward: In addition to what is kept, while a backward or the first part of one runs.
    """

    kept: int
    deferred: int = 0
    backward: int = 0


def peak_live(schedule: Schedule) -> tuple[int, ...]:
    """Return, by worker, the largest number of micro-batches that wait for their backward at any time.

    A worker with several stages counts a micro-batch once for each stage. A micro-batch with a split
    backward counts until its weight gradients are done. Without backwards nothing waits.
    """
    return peak_live_bytes(schedule, [StageBytes(kept=1, deferred=1)] * schedule.stages)


def peak_live_bytes(schedule: Schedule, stages: Sequence[StageBytes]) -> tuple[int, ...]:
    """Return, by worker, the largest number of bytes held for backwards at any time.

    Args:
        schedule: The schedule of one replica.
        stages: What each stage holds for a micro-batch.
    """
    return tuple(peak_of_worker(schedule, worker, stages) for worker in range(len(schedule.workers)))


def peak_of_worker(schedule: Schedule, worker: int, stages: Sequence[StageBytes]) -> int:
    """Return the largest number of bytes that a worker holds for backwards at one time."""
    return max((max(during, after) for during, after in live_bytes(schedule, worker, stages)), default=0)


def live_bytes(schedule: Schedule, worker: int, stages: Sequence[StageBytes]) -> list[tuple[int, int]]:
    """Return, for every action of a worker, the bytes held for backwards during it and after it."""
    actions = schedule.workers[worker]
    training = any(action.kind in COMPLETES_WEIGHT_GRADIENT for action in actions)
    live, alive = 0, []
    for action in actions:
        stage, during = stages[action.stage], live
        if action.kind is Kind.FORWARD and training:
            live += stage.kept
        elif action.kind is Kind.BACKWARD:
            during += stage.backward
            live -= stage.kept
        elif action.kind is Kind.BACKWARD_INPUT:
            during += stage.backward
            live += stage.deferred - stage.kept
        elif action.kind is Kind.BACKWARD_WEIGHT:
            live -= stage.deferred
        alive.append((during, live))
    return alive
