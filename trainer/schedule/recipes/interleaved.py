"""Interleaved 1F1B: worker w of p holds the stages w, w + p, w + 2 p, ... (Narayanan et al., 2021).

Two workers with two stages each, so that every number is there twice, once for each of the worker's stages:

    0 |0 1 0 1 2 ..(0) 3 (1) 2 (0) 3 (1) ..(2) ..(3) (2) (3) |
    1 |..0 1 0 (0) 1 (1) 2 (0) 3 (1) 2 (2) 3 (3) (2) (3) ....|

With v stages a worker the pipeline fills and drains v times as fast, for v times the messages.
"""

from trainer.schedule.actions import Action, Kind, Order
from trainer.schedule.orders import alternate, forward_only, groups
from trainer.schedule.recipe import Placement, ScheduleRecipe, by_worker


def interleaved(worker: int, placement: Placement, micro_batches: int) -> Order:
    """Return a worker's order.

    Micro-batches go in groups of at least as many as there are workers: a group passes all of a worker's
    stages before the next one enters. Larger groups keep more micro-batches alive.
    """
    workers = max(placement) + 1
    held = range(worker, len(placement), workers)
    forwards = list(forward_only(held, workers, micro_batches))
    backwards = [
        Action(Kind.BACKWARD, action.stage, action.micro_batch)
        for action in forward_only(held[::-1], workers, micro_batches)
    ]
    group = len(groups(workers, micro_batches)[0])
    warm_up = 2 * (workers - 1 - worker) + (len(held) - 1) * group
    return alternate(forwards, backwards, warm_up=warm_up)


RECIPE = ScheduleRecipe(
    name="interleaved",
    year=2021,
    order=by_worker(interleaved),
    stages_per_worker=2,
    adjustable=True,
    idle=lambda p, m, v: (p - 1) / (v * m + p - 1),
)
