"""Schedules as the order in which a worker computes; messages follow from it (see `assemble`).

Every order is a function of the worker's number, how many workers there are, how many micro-batches, and how
many stages a worker holds.

Four stages, six micro-batches; forward 0..5, backward in brackets:

    GPipe   0 1 2 3 4 5 . . . . . . (0)(1)(2)...       all forwards, then all backwards
    1F1B    0 1 2 3 (0) 4 (1) 5 (2) (3) (4) (5)        as soon as it can, a backward for every forward

ZB-H1 splits backwards: the stage before waits for the gradients of the inputs only, so those of the weights
come later, and fill the time in which the pipeline drains. Its third stage, weight gradients in braces:

    ZB-H1   0 1 (0) 2 (1) 3 (2){0} 4 (3){1} 5 (4){2} (5){3}{4}{5}

Interleaved 1F1B cuts the model into v times as many stages; worker w of p holds the stages w, w + p, ... So
the pipeline fills and drains v times as fast, for v times the messages. ZB-V has two stages a worker that go
there and back, so that the first worker holds the last stage too, and splits backwards: see `zero_bubble_v`.

Backwards run in micro-batch order in all of them, and so do weight gradients: gradients add up in the same
order in every layout.
"""

from collections.abc import Callable, Sequence

from trainer.errors import UserError
from trainer.layout import share
from trainer.schedule.actions import Action, Kind, Order
from trainer.schedule.zero_bubble_v import zero_bubble_v


def gpipe(stage: int, stages: int, micro_batches: int, virtual: int = 1) -> Order:
    """Return GPipe's order for a stage: all forwards, then all backwards (Huang et al., 2019)."""
    del stages, virtual  # every order takes the same four
    forwards = [Action(Kind.FORWARD, stage, i) for i in range(micro_batches)]
    backwards = [Action(Kind.BACKWARD, stage, i) for i in range(micro_batches)]
    return (*forwards, *backwards)


def one_forward_one_backward(stage: int, stages: int, micro_batches: int, virtual: int = 1) -> Order:
    """Return 1F1B's order for a stage (PipeDream-Flush; Narayanan et al., 2021).

    As many forwards as there are stages behind this one, then a forward and a backward in turn, then the
    backwards that are left. At most `stages - stage` micro-batches are alive at a time.
    """
    del virtual
    forwards = [Action(Kind.FORWARD, stage, i) for i in range(micro_batches)]
    backwards = [Action(Kind.BACKWARD, stage, i) for i in range(micro_batches)]
    return _in_turn(forwards, backwards, warm_up=stages - 1 - stage)


def zero_bubble_h1(stage: int, stages: int, micro_batches: int, virtual: int = 1) -> Order:
    """Return ZB-H1's order for a stage: 1F1B's, with weight gradients put off (Qi et al., 2024).

    Each stage puts them off by as many micro-batches as there are stages before it. Then all stages have the
    drain filled, and each holds `stages` micro-batches at most, what 1F1B's first stage holds. Where F = I =
    W and m >= p, p - 1 of the 3 m + p - 1 are left idle. The first stage has nobody to hurry for: its
    backwards stay whole.
    """
    del virtual
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


def interleaved(worker: int, workers: int, micro_batches: int, virtual: int = 1) -> Order:
    """Return interleaved 1F1B's order for a worker (Narayanan et al., 2021).

    Micro-batches go in groups of at least as many as there are workers: a group passes all of a worker's
    stages before the next one enters. With groups of p and v stages a worker, p - 1 of v m + p - 1 parts of a
    step are left idle; larger groups keep more micro-batches alive.
    """
    stages = range(worker, workers * virtual, workers)
    forwards = list(forward_only(stages, workers, micro_batches))
    backwards = [
        Action(Kind.BACKWARD, action.stage, action.micro_batch)
        for action in forward_only(stages[::-1], workers, micro_batches)
    ]
    group = len(_groups(workers, micro_batches)[0])
    return _in_turn(forwards, backwards, warm_up=2 * (workers - 1 - worker) + (virtual - 1) * group)


def forward_only(held: Sequence[int], workers: int, micro_batches: int) -> Order:
    """Return the order of an evaluation on a worker: every forward of its stages once.

    Args:
        held: The worker's stages.
        workers: How many workers there are.
        micro_batches: How many there are.
    """
    return tuple(
        Action(Kind.FORWARD, stage, i)
        for group in _groups(workers, micro_batches)
        for stage in held
        for i in group
    )


def _groups(workers: int, micro_batches: int) -> list[range]:
    """Return runs of micro-batches of at least as many as there are workers, the longer ones first.

    A shorter run would let the first worker wait for a micro-batch that comes round, and the last one for a
    gradient that cannot be there yet.
    """
    count = max(1, micro_batches // workers)
    return [share(micro_batches, count, number) for number in range(count)]


def _in_turn(forwards: list[Action], backwards: list[Action], *, warm_up: int) -> Order:
    """Return some forwards, then a forward and a backward in turn, then the backwards that are left."""
    order = forwards[:warm_up]
    for number, backward in enumerate(backwards):
        order += [*forwards[warm_up + number : warm_up + number + 1], backward]
    return tuple(order)


ORDERS: dict[str, Callable[[int, int, int, int], Order]] = {
    "gpipe": gpipe,
    "1f1b": one_forward_one_backward,
    "zb_h1": zero_bubble_h1,
    "interleaved": interleaved,
    "zb_v": zero_bubble_v,
}


def virtual_stages(name: str) -> int:
    """Return how many stages a worker holds under a schedule, where the user does not say."""
    return 2 if name in ("interleaved", "zb_v") else 1


def placement(name: str, workers: int, virtual: int | None = None) -> tuple[int, ...]:
    """Return the worker that holds each stage.

    Args:
        name: A key of `ORDERS`.
        workers: How many there are.
        virtual: How many stages a worker holds; None: what the schedule needs, or takes by itself.

    Raises:
        UserError: The schedule cannot place so many.
    """
    usual = virtual_stages(name)
    virtual = usual if virtual is None else virtual
    if virtual != usual and name != "interleaved":
        raise UserError(
            f"layout.virtual_stages={virtual}, but schedule={name} has {usual} stage{'s' * (usual > 1)} a "
            "worker: use schedule=interleaved, or leave layout.virtual_stages out"
        )
    there = tuple(range(workers))
    return there + there[::-1] if name == "zb_v" else there * virtual
