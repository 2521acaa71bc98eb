"""What the orders of several schedules are made of.

Four stages, six micro-batches; the first stage's forwards as 0..5, its backwards in brackets:

    forwards, backwards     0 1 2 3 4 5 (0)(1)(2)(3)(4)(5)
    alternate, warm_up=3    0 1 2 3 (0) 4 (1) 5 (2) (3) (4) (5)
"""

from collections.abc import Sequence

from trainer.distributed.layout import share
from trainer.schedule.actions import Action, Kind, Order


def forwards(stage: int, micro_batches: int) -> list[Action]:
    """Return a stage's forwards, in micro-batch order."""
    return [Action(Kind.FORWARD, stage, i) for i in range(micro_batches)]


def backwards(stage: int, micro_batches: int) -> list[Action]:
    """Return a stage's whole backwards, in micro-batch order."""
    return [Action(Kind.BACKWARD, stage, i) for i in range(micro_batches)]


def alternate(forwards: Sequence[Action], backwards: Sequence[Action], *, warm_up: int) -> Order:
    """Return `warm_up` forwards, then a forward and a backward in turn, then the remaining backwards."""
    order = list(forwards[:warm_up])
    for number, backward in enumerate(backwards):
        order += [*forwards[warm_up + number : warm_up + number + 1], backward]
    return tuple(order)


def forward_only(held: Sequence[int], workers: int, micro_batches: int) -> Order:
    """Return a worker's order in an evaluation: all forwards of its stages, by `groups`.

    Args:
        held: The worker's stages.
        workers: The number of workers.
        micro_batches: The number of micro-batches.
    """
    return tuple(
        Action(Kind.FORWARD, stage, i)
        for group in groups(workers, micro_batches)
        for stage in held
        for i in group
    )


def groups(workers: int, micro_batches: int) -> list[range]:
    """Return runs of micro-batches, each of at least as many as there are workers, longer runs first.

    In a shorter run the first worker would wait for a micro-batch to come round, and the last one for a
    gradient that cannot be there yet.
    """
    count = max(1, micro_batches // workers)
    return [share(micro_batches, count, number) for number in range(count)]
