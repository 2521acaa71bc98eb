"""ZB-V: two stages a worker, placed there and back, with some backwards split (Qi et al., 2024).

The first worker holds the last stage too. Two workers, four stages, so that every number is there twice:

    0 |0   1   2   0   (0) {0} 1   ....(0)     (1) {1} 2   (2) (1)     {2} (2)     |
    1 |....0   0   1   1   (0) (0)     {0} 2   2   (1) (1)     (2) (2)     {1} {2} |

Workers keep at most as many activations alive as 1F1B's first stage. For m >= p they are idle for p - 1 of
the 6 m + p - 1 parts of a step; the order that is found takes at most 3 % longer for up to 8 workers, and
mostly no longer. It depends on the time of forwards and backwards of each stage: see
`trainer.schedule.zero_bubble_v`.
"""

from collections.abc import Sequence

from trainer.schedule.actions import Kind, Order, Work
from trainer.schedule.recipe import Placement, ScheduleRecipe
from trainer.schedule.zero_bubble_v import shortest_orders

_UNITS = {Kind.FORWARD: 1.0, Kind.BACKWARD: 2.0, Kind.BACKWARD_INPUT: 1.0, Kind.BACKWARD_WEIGHT: 1.0}


def there_and_back(workers: int, stages_per_worker: int) -> Placement:
    """Return the placement in which worker w holds stage w and the one as far from the end."""
    assert stages_per_worker == 2, "there and back"  # noqa: PLR2004
    return (*range(workers), *reversed(range(workers)))


def zero_bubble_v(placement: Placement, micro_batches: int, work: Work | None) -> Sequence[Order]:
    """Return every worker's order."""
    return shortest_orders(len(placement) // 2, micro_batches, _times(placement, work))


def nearly_zero_bubble_v(placement: Placement, micro_batches: int, work: Work | None) -> Sequence[Order]:
    """Return every worker's order, found with a small part of the search."""
    return shortest_orders(len(placement) // 2, micro_batches, _times(placement, work), thorough=False)


def _times(placement: Placement, work: Work | None) -> dict[Kind, tuple[float, ...]]:
    work = work or {kind: (units,) * len(placement) for kind, units in _UNITS.items()}
    return {kind: tuple(work[kind]) for kind in _UNITS}


RECIPE = ScheduleRecipe(
    name="zb_v",
    year=2024,
    order=zero_bubble_v,
    place=there_and_back,
    stages_per_worker=2,
    idle=lambda p, m, _v: (p - 1) / (6 * m + p - 1),
    depends_on_work=True,
    roughly=nearly_zero_bubble_v,
)
