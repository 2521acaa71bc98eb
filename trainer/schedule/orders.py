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
there and back, so that the first worker holds the last stage too, and splits backwards.

Backwards run in micro-batch order in all of them, and so do weight gradients: gradients add up in the same
order in every layout.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import permutations
from math import inf

from trainer.errors import UserError
from trainer.layout import share
from trainer.schedule.actions import Action, Kind

Order = tuple[Action, ...]
Work = Mapping[Kind, Sequence[float]]  # what an action of a kind takes, by stage
_F, _I, _W = Kind.FORWARD, Kind.INPUT_GRADIENT, Kind.WEIGHT_GRADIENT


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


def zero_bubble_v(
    worker: int, workers: int, micro_batches: int, virtual: int = 2, work: Work | None = None
) -> Order:
    """Return ZB-V's order for a worker, which holds stage `worker` and the one as far from the end.

    The placement and the bounds are those of Qi et al. (2024): at most as many activations alive as 1F1B's
    first stage keeps, and where F = I = W, a step of 6 m + p - 1 parts, of which p - 1 are idle. The order is
    found anew, by `_there_and_back`, for what the parts of each stage take. With equal times, m >= p and up
    to 8 workers it is at most 3 % above the bound, and mostly at it.
    """
    assert virtual == 2, "there and back"  # noqa: PLR2004
    times = tuple(tuple(work[kind]) if work else (1.0,) * 2 * workers for kind in (_F, _I, _W))
    return _there_and_back(workers, micro_batches, times)[worker]


@lru_cache(maxsize=16)
def _there_and_back(
    workers: int, micro_batches: int, times: tuple[tuple[float, ...], ...]
) -> tuple[Order, ...]:
    """Return ZB-V's order for every worker: the shortest that a greedy worker finds, whatever it prefers.

    Args:
        workers: How many there are.
        micro_batches: How many there are.
        times: Of a forward, an input gradient and a weight gradient, of every stage.
    """
    forward = times[0]
    # No worker is through before it was reached, and did its work.
    least = max(
        sum(forward[:worker])
        + micro_batches * sum(each[worker] + each[2 * workers - 1 - worker] for each in times)
        for worker in range(workers)
    )
    tries = max(1, _MOST_ACTIONS // (12 * workers * micro_batches))
    best: tuple[float, list[list[Action]]] = inf, []
    # While the pipeline is full nobody need wait for a whole backward, which is less work than two parts.
    for whole in (range(0), range(workers, micro_batches - workers)):
        shortest: tuple[float, list[list[Action]]] = inf, []
        for preference in _PREFERENCES[:tries]:
            found = _Greedy(workers, micro_batches, times, preference, whole).orders()
            shortest = min(shortest, found, key=lambda each: each[0])
            if shortest[0] <= least:
                break
        seconds = shortest[0] * (1 + _SPLITTING * (1 - len(whole) / micro_batches))
        best = min(best, (seconds, shortest[1]), key=lambda each: each[0])
    return tuple(_whole_where_nobody_waits(order) for order in best[1])


# What a worker may do first: forwards and input gradients, of its stage on the way there and on the way back.
_THERE, _BACK = 0, 1
_PREFERENCES = sorted(
    permutations([(_F, _BACK), (_F, _THERE), (_I, _THERE), (_I, _BACK)]),
    key=lambda order: order.index((_I, _THERE)) + 2 * order.index((_F, _BACK)),
)
_SPLITTING = 0.03  # what splitting every backward adds to the work (`make bench-overhead`)
_MOST_ACTIONS = 50_000  # that are placed in all, which takes about a second


class _Greedy:
    """Workers on a V of stages, each of which does the first thing by preference that is ready.

    Weight gradients come last, where nothing else is ready. Forwards keep memory until their weight gradients
    are done: a worker keeps at most 2 p at a time, the last of which only on the way back, or the way there
    could take all and nothing would ever come back.

    Args:
        workers: How many there are.
        micro_batches: How many there are.
        times: Of a forward, an input gradient and a weight gradient, of every stage.
        preference: The kinds and ways, the dearest first.
        whole: The micro-batches whose backwards are not split.
    """

    def __init__(
        self,
        workers: int,
        micro_batches: int,
        times: Sequence[Sequence[float]],
        preference: Sequence[tuple[Kind, int]],
        whole: range,
    ) -> None:
        self._workers = workers
        self._micro_batches = micro_batches
        self._stages = 2 * workers
        self._times = dict(zip((_F, _I, _W), times, strict=True))
        self._whole = whole
        self._preference = (*preference, (_W, _BACK), (_W, _THERE))
        # By kind and stage: when each micro-batch was done.
        self._ends: dict[Kind, list[list[float]]] = {
            kind: [[] for _ in range(self._stages)] for kind in (_F, _I, _W)
        }
        self._clocks = [0.0] * workers

    def orders(self) -> tuple[float, list[list[Action]]]:
        """Return how long the step takes, and every worker's order."""
        orders: list[list[Action]] = [[] for _ in range(self._workers)]
        turns = [self._next(worker) for worker in range(self._workers)]
        while any(turn[0] < inf for turn in turns):
            start, worker, kind, stage = min(turns, key=lambda turn: turn[:2])
            i = len(self._ends[kind][stage])
            parts = (_I, _W) if kind is _I and i in self._whole else (kind,)
            orders[worker].append(Action(Kind.BACKWARD if len(parts) > 1 else kind, stage, i))
            self._clocks[worker] = start + sum(self._times[part][stage] for part in parts)
            for part in parts:
                self._ends[part][stage].append(self._clocks[worker])
            for changed in range(max(0, worker - 1), min(worker + 2, self._workers)):
                turns[changed] = self._next(changed)
        return max(self._clocks), orders

    def _next(self, worker: int) -> tuple[float, int, Kind, int]:
        """Return what a worker does next, and when: (start, worker, kind, stage)."""
        best: tuple[float, int, Kind, int] = inf, worker, _W, worker
        for kind, way in self._preference:
            stage = worker if way == _THERE else self._stages - 1 - worker
            start = max(self._clocks[worker], self._ready(kind, stage, worker))
            if start < best[0]:
                best = start, worker, kind, stage
        return best

    def _ready(self, kind: Kind, stage: int, worker: int) -> float:
        """Return when the next micro-batch can go through a stage; infinity where it is not known yet."""
        ends, i = self._ends, len(self._ends[kind][stage])
        behind = len(ends[_W][stage]) < i  # gradients add up in the order of micro-batches
        if i == self._micro_batches or (kind is _I and i in self._whole and behind):
            return inf
        if kind is _W:
            needed = [ends[_I][stage]]
        elif kind is _I:
            needed = [ends[_F][stage], *([ends[_I][stage + 1]] if stage + 1 < self._stages else [])]
        else:
            alive = sum(
                len(ends[_F][each]) - len(ends[_W][each]) for each in (worker, self._stages - 1 - worker)
            )
            if alive >= self._stages - (stage == worker):
                return inf
            needed = [ends[_F][stage - 1]] if stage else []
        return max((done[i] if i < len(done) else inf for done in needed), default=0.0)


def _whole_where_nobody_waits(order: Sequence[Action]) -> Order:
    """Make one backward of both parts where they follow each other on the first stage."""
    whole: list[Action] = []
    for action in order:
        first = Action(Kind.INPUT_GRADIENT, 0, action.micro_batch)
        if action.kind is Kind.WEIGHT_GRADIENT and action.stage == 0 and whole[-1] == first:
            whole[-1] = Action(Kind.BACKWARD, 0, action.micro_batch)
        else:
            whole.append(action)
    return tuple(whole)


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
