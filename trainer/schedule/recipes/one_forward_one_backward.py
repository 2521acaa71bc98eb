"""1F1B: a backward after every forward, as soon as it can (PipeDream-Flush; Narayanan et al., 2021).

    0 |0 1 2 ........(0) 3 (1) ..(2) ..(3) |
    1 |..0 1 ....(0) 2 (1) 3 (2) ..(3) ....|
    2 |....0 (0) 1 (1) 2 (2) 3 (3) ........|

It has GPipe's idle share, but keeps at most `stages - stage` micro-batches alive.
"""

from trainer.schedule.actions import Order
from trainer.schedule.orders import alternate, backwards, forwards
from trainer.schedule.recipe import ScheduleRecipe, by_stage


def one_forward_one_backward(stage: int, stages: int, micro_batches: int) -> Order:
    """Return a stage's order.

    As many forwards as there are stages after this one, then a forward and a backward in turn, then the
    remaining backwards.
    """
    warm_up = stages - 1 - stage
    return alternate(forwards(stage, micro_batches), backwards(stage, micro_batches), warm_up=warm_up)


RECIPE = ScheduleRecipe(
    name="1f1b",
    year=2021,
    order=by_stage(one_forward_one_backward),
    idle=lambda p, m, _v: (p - 1) / (m + p - 1),
)
