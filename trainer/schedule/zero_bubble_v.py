"""ZB-V: each worker holds two stages, on the way there and on the way back, and splits some backwards.

The placement and the bounds are those of Qi et al. (2024): at most as many activations alive as 1F1B's first
stage keeps, and where F = I = W, a step of 6 m + p - 1 parts, of which p - 1 are idle. The order is found
anew, for what forwards and backwards of each stage take:

    1. Greedy workers each do the first thing that is ready, with different preferences, and with all
       backwards split or those whole in whose time the pipeline is full (`_Greedy`).
    2. The shortest of what they find lose the splits that gain nothing: two parts are more work than a
       whole backward (`_FewerSplits`).
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import permutations
from math import inf

from trainer.schedule.actions import COMPLETES, PASSES_ON, Action, Kind, Order

_F, _B, _I, _W = Kind.FORWARD, Kind.BACKWARD, Kind.INPUT_GRADIENT, Kind.WEIGHT_GRADIENT
_Times = dict[Kind, tuple[float, ...]]  # by stage
_Orders = list[list[Action]]  # by worker

# What a worker may do first: forwards and input gradients, of its stage on the way there and on the way back.
_THERE, _BACK = 0, 1
_PREFERENCES = sorted(
    permutations([(_F, _BACK), (_F, _THERE), (_I, _THERE), (_I, _BACK)]),
    key=lambda order: order.index((_I, _THERE)) + 2 * order.index((_F, _BACK)),
)
_PLACED = 25_000  # actions that greedy workers place in all, at most, which takes half a second
_REPLAYED = 150_000  # actions that are timed again for fewer splits: a third of one
_FINALISTS = 4


def shortest_orders(
    workers: int, micro_batches: int, times: Mapping[Kind, tuple[float, ...]]
) -> tuple[Order, ...]:
    """Return every worker's order, the shortest that is found. All ranks find the same.

    Worker w of p holds the stages w and 2 p - 1 - w.

    Args:
        workers: The number of workers.
        micro_batches: The number of micro-batches.
        times: The time of a forward, a whole backward and each of its two parts, by stage.
    """
    return _shortest(workers, micro_batches, *(times[kind] for kind in (_F, _B, _I, _W)))


@lru_cache(maxsize=16)
def _shortest(workers: int, micro_batches: int, *parts: tuple[float, ...]) -> tuple[Order, ...]:
    times = dict(zip((_F, _B, _I, _W), parts, strict=True))
    actions = 6 * workers * micro_batches
    inner = [range(first, micro_batches - workers) for first in (1, workers)]
    wholes = list(dict.fromkeys([range(0), *inner]))  # all empty ranges are equal
    found = [
        _Greedy(workers, micro_batches, times, preference, whole).orders()
        for whole in wholes
        for preference in _PREFERENCES[: max(1, _PLACED // (3 * actions))]
    ]
    found.sort(key=lambda orders: _seconds(orders, times))
    best = _FewerSplits(found[0], times, _REPLAYED // actions)
    for orders in found[1:_FINALISTS]:
        other = _FewerSplits(orders, times, _REPLAYED // actions // _FINALISTS)
        if other.score < best.score:
            best = other
    return tuple(map(tuple, best.orders))


class _Greedy:
    """Workers on a V of stages, each of which does the first thing by preference that is ready.

    Weight gradients come last, where nothing else is ready. Forwards keep memory until their weight gradients
    are done: a worker keeps at most 2 p at a time, the last of which only on the way back, or the way there
    could take all and nothing would ever come back.

    Args:
        workers: How many there are.
        micro_batches: How many there are.
        times: What actions take.
        preference: The kinds and ways, the dearest first.
        whole: The micro-batches whose backwards are not split.
    """

    def __init__(
        self,
        workers: int,
        micro_batches: int,
        times: _Times,
        preference: Sequence[tuple[Kind, int]],
        whole: range,
    ) -> None:
        self._workers = workers
        self._micro_batches = micro_batches
        self._stages = 2 * workers
        self._times = times
        self._whole = whole
        self._preference = (*preference, (_W, _BACK), (_W, _THERE))
        # By kind and stage: when each micro-batch was done.
        self._ends: dict[Kind, list[list[float]]] = {
            kind: [[] for _ in range(self._stages)] for kind in (_F, _I, _W)
        }
        self._clocks = [0.0] * workers

    def orders(self) -> _Orders:
        """Return every worker's order."""
        orders: _Orders = [[] for _ in range(self._workers)]
        turns = [self._next(worker) for worker in range(self._workers)]
        while any(turn[0] < inf for turn in turns):
            start, worker, kind, stage = min(turns, key=lambda turn: turn[:2])
            i = len(self._ends[kind][stage])
            does = _B if kind is _I and i in self._whole else kind
            orders[worker].append(Action(does, stage, i))
            self._clocks[worker] = start + self._times[does][stage]
            for part in (_I, _W) if does is _B else (kind,):
                self._ends[part][stage].append(self._clocks[worker])
            for changed in range(max(0, worker - 1), min(worker + 2, self._workers)):
                turns[changed] = self._next(changed)
        return orders

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


class _FewerSplits:
    """Makes backwards whole again wherever that makes no step longer, many at once where it can.

    Args:
        orders: What every worker does.
        times: What actions take.
        tries: How many other orders may be timed.

    Attributes:
        orders: The same with fewer splits.
    """

    def __init__(self, orders: _Orders, times: _Times, tries: int) -> None:
        self.orders = orders
        self._times = times
        self._tries = tries
        self._seconds = _seconds(orders, times)
        before = 0
        while len(splits := self._splits) != before:
            before = len(splits)
            self._join(splits)

    @property
    def score(self) -> tuple[float, int]:
        """Return how long the step takes, and how many backwards are split."""
        return self._seconds, len(self._splits)

    @property
    def _splits(self) -> list[Action]:
        """Return the first parts that there are, the first stage's first."""
        split = [action for order in self.orders for action in order if action.kind is _I]
        return sorted(split, key=lambda action: (action.stage, action.micro_batch))

    def _join(self, splits: Sequence[Action]) -> None:
        """Make these backwards whole, or else what can be of either half of them."""
        if self._tries == 0:
            return
        self._tries -= 1
        orders = [
            _joined(order, {(each.stage, each.micro_batch) for each in splits}) for order in self.orders
        ]
        seconds = _seconds(orders, self._times)
        if seconds <= self._seconds * (1 + 1e-9):  # sums in another order
            self.orders, self._seconds = orders, seconds
        elif len(splits) > 1:
            half = len(splits) // 2
            self._join(splits[:half])
            self._join(splits[half:])


def _joined(order: Iterable[Action], whole: set[tuple[int, int]]) -> list[Action]:
    """Return an order with some backwards whole, at the places of their first parts."""
    joined = []
    for action in order:
        if (action.stage, action.micro_batch) not in whole or action.kind is _F:
            joined.append(action)
        elif action.kind is _I:
            joined.append(Action(_B, action.stage, action.micro_batch))
    return joined


def _seconds(orders: _Orders, times: _Times) -> float:
    """Return when the last worker is done; infinity where they wait for one another, or break a rule.

    As `simulate` would, but without messages, which these orders do not have yet, and so in far less time.
    The rule: the gradients of a stage's weights add up in the order of micro-batches.
    """
    # By kind and stage, of each micro-batch so far: when it was passed on.
    passed: dict[Kind, list[list[float]]] = {kind: [[] for _ in range(2 * len(orders))] for kind in (_F, _B)}
    complete = [0] * 2 * len(orders)  # micro-batches, by stage
    clocks, at = [0.0] * len(orders), [0] * len(orders)
    left, before = sum(map(len, orders)), -1
    while left != before:
        before = left
        for worker, order in enumerate(orders):
            for action in order[at[worker] :]:
                kind, stage = action.kind, action.stage
                ready = _ready(action, passed)
                if ready == inf:
                    break
                clocks[worker] = max(clocks[worker], ready) + times[kind][stage]
                if kind is not _W:
                    passed[_F if kind is _F else _B][stage].append(clocks[worker])
                if kind in COMPLETES:
                    if complete[stage] != action.micro_batch:
                        return inf
                    complete[stage] += 1
                at[worker] += 1
                left -= 1
    return inf if left else max(clocks)


def _ready(action: Action, passed: dict[Kind, list[list[float]]]) -> float:
    """Return when what an action takes was passed on; infinity where it is not yet."""
    kind, stage, i = action.kind, action.stage, action.micro_batch
    if kind is _F and stage > 0:
        moments = passed[_F][stage - 1]
    elif kind in PASSES_ON and stage + 1 < len(passed[_B]):
        moments = passed[_B][stage + 1]
    else:
        return 0.0
    return moments[i] if i < len(moments) else inf
