"""GPipe: all forwards, then all backwards (Huang et al., 2019).

    0 |0 1 2 3 ............(0) (1) (2) (3) |
    1 |..0 1 2 3 ......(0) (1) (2) (3) ....|
    2 |....0 1 2 3 (0) (1) (2) (3) ........|

A stage keeps all m micro-batches alive.
"""

from trainer.schedule.actions import Order
from trainer.schedule.orders import backwards, forwards
from trainer.schedule.recipe import ScheduleRecipe, by_stage


def gpipe(stage: int, _stages: int, micro_batches: int) -> Order:
    """Return a stage's order."""
    return (*forwards(stage, micro_batches), *backwards(stage, micro_batches))


RECIPE = ScheduleRecipe(
    name="gpipe",
    year=2019,
    order=by_stage(gpipe),
    idle=lambda p, m, _v: (p - 1) / (m + p - 1),
)
