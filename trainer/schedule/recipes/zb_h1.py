"""ZB-H1: 1F1B with split backwards, whose weight gradients fill the drain (Qi et al., 2024).

The stage before waits for the gradients of the inputs only, so those of the weights are deferred:

    0 |0   1   2   ........(0)     3   (1)     (2)     (3)     |
    1 |....0   1   ....(0) 2   (1) {0} 3   (2) {1} (3) {2} {3} |
    2 |........0   (0) 1   (1) 2   (2) {0} 3   (3) {1} {2} {3} |

For m >= p, workers are idle for p - 1 of the 3 m + p - 1 parts of a step.
"""

from trainer.schedule.actions import Action, Kind, Order
from trainer.schedule.recipe import ScheduleRecipe, by_stage
from trainer.schedule.recipes.one_forward_one_backward import one_forward_one_backward


def zero_bubble_h1(stage: int, stages: int, micro_batches: int) -> Order:
    """Return a stage's order: 1F1B's, with weight gradients deferred by as many micro-batches as `stage`.

    So every stage has the drain filled, and keeps at most `stages` micro-batches alive, as 1F1B's first
    stage does. The first stage has no upstream stage waiting for it: its backwards stay whole.
    """
    whole = one_forward_one_backward(stage, stages, micro_batches)
    if stage == 0:
        return whole
    order: list[Action] = []
    for action in whole:
        if action.kind is not Kind.BACKWARD:
            order.append(action)
            continue
        order.append(Action(Kind.BACKWARD_INPUT, stage, action.micro_batch))
        if action.micro_batch >= stage:
            order.append(Action(Kind.BACKWARD_WEIGHT, stage, action.micro_batch - stage))
    left = range(max(0, micro_batches - stage), micro_batches)
    return (*order, *(Action(Kind.BACKWARD_WEIGHT, stage, i) for i in left))


RECIPE = ScheduleRecipe(
    name="zb_h1",
    year=2024,
    order=by_stage(zero_bubble_h1),
    idle=lambda p, m, _v: (p - 1) / (3 * m + p - 1),
)
