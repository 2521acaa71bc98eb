"""Schedules as the order in which a worker computes; messages follow from it (see `assemble`).

Four stages, six micro-batches; forward 0..5, backward in brackets:

    GPipe   0 1 2 3 4 5 . . . . . . (0)(1)(2)...       all forwards, then all backwards
    1F1B    0 1 2 3 (0) 4 (1) 5 (2) (3) (4) (5)        as soon as it can, a backward for every forward

ZB-H1 splits backwards: the stage before waits for the gradients of the inputs only, so those of the weights
come later, and fill the time in which the pipeline drains. Its third stage, weight gradients in braces:

    ZB-H1   0 1 (0) 2 (1) 3 (2){0} 4 (3){1} 5 (4){2} (5){3}{4}{5}

Backwards run in micro-batch order in all of them, and so do weight gradients: gradients add up in the same
order in every layout.
"""

from collections.abc import Callable

from trainer.schedule.actions import Action, Kind

Order = tuple[Action, ...]


def gpipe(stage: int, stages: int, micro_batches: int) -> Order:
    """Return GPipe's order for a stage: all forwards, then all backwards (Huang et al., 2019)."""
    del stages  # every order takes the same three
    forwards = [Action(Kind.FORWARD, stage, i) for i in range(micro_batches)]
    backwards = [Action(Kind.BACKWARD, stage, i) for i in range(micro_batches)]
    return (*forwards, *backwards)


def one_forward_one_backward(stage: int, stages: int, micro_batches: int) -> Order:
    """Return 1F1B's order for a stage (PipeDream-Flush; Narayanan et al., 2021).

    As many forwards as there are stages behind this one, then a forward and a backward in turn, then the
    backwards that are left. At most `stages - stage` micro-batches are alive at a time.
    """
    warm_up = min(stages - 1 - stage, micro_batches)
    order = [Action(Kind.FORWARD, stage, i) for i in range(warm_up)]
    for i in range(micro_batches):
        if warm_up + i < micro_batches:
            order.append(Action(Kind.FORWARD, stage, warm_up + i))
        order.append(Action(Kind.BACKWARD, stage, i))
    return tuple(order)


def zero_bubble_h1(stage: int, stages: int, micro_batches: int) -> Order:
    """Return ZB-H1's order for a stage: 1F1B's, with weight gradients put off (Qi et al., 2024).

    Each stage puts them off by as many micro-batches as there are stages before it. Then all stages have the
    drain filled, and each holds `stages` micro-batches at most, what 1F1B's first stage holds. Where F = I =
    W and m >= p, p - 1 of the 3 m + p - 1 are left idle. The first stage has nobody to hurry for: its
    backwards stay whole.
    """
    split = stage > 0
    order: list[Action] = []
    for action in one_forward_one_backward(stage, stages, micro_batches):
        if action.kind is not Kind.BACKWARD or not split:
            order.append(action)
            continue
        order.append(Action(Kind.INPUT_GRADIENT, stage, action.micro_batch))
        if action.micro_batch >= stage:
            order.append(Action(Kind.WEIGHT_GRADIENT, stage, action.micro_batch - stage))
    if split:
        left = range(max(0, micro_batches - stage), micro_batches)
        order += [Action(Kind.WEIGHT_GRADIENT, stage, i) for i in left]
    return tuple(order)


def forward_only(stage: int, stages: int, micro_batches: int) -> Order:
    """Return the order of an evaluation: every forward once."""
    del stages  # every order takes the same three
    return tuple(Action(Kind.FORWARD, stage, i) for i in range(micro_batches))


ORDERS: dict[str, Callable[[int, int, int], Order]] = {
    "gpipe": gpipe,
    "1f1b": one_forward_one_backward,
    "zb_h1": zero_bubble_h1,
}
