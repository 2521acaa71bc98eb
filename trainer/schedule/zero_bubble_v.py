"""The search for ZB-V's order: two stages a worker, there and back, some backwards split (Qi et al., 2024).

The placement and the bounds are the paper's: workers keep at most as many activations alive as 1F1B's first
stage, and where F = I = W, they are idle for p - 1 of the 6 m + p - 1 parts of a step. The order is found for
the times of forwards and backwards of each stage:

    1. Greedy workers each do the first action that is ready, with different preferences, and with all
       backwards split or with those whole that fall where the pipeline is full (`_Greedy`).
    2. The shortest orders lose the splits that gain nothing: two parts are more work than a whole backward
       (`_FewerSplits`).
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from heapq import heapify, heappop, heappush
from itertools import permutations
from math import inf

from trainer.schedule.actions import COMPLETES_WEIGHT_GRADIENT, Action, Kind, Order

_F, _B, _I, _W = Kind.FORWARD, Kind.BACKWARD, Kind.BACKWARD_INPUT, Kind.BACKWARD_WEIGHT
_Times = Mapping[Kind, tuple[float, ...]]  # by stage
_Orders = list[list[Action]]  # by worker
_Ends = dict[Kind, list[list[float]]]  # by kind and stage, of every micro-batch so far
_Turn = tuple[float, Kind, int]  # start, kind, stage

# What a worker may do first: forwards and input gradients, of its stage on the way there and on the way back.
_THERE, _BACK = 0, 1
_PREFERENCES = sorted(
    permutations([(_F, _BACK), (_F, _THERE), (_I, _THERE), (_I, _BACK)]),
    key=lambda order: order.index((_I, _THERE)) + 2 * order.index((_F, _BACK)),
)
_PLACED = 25_000  # actions that greedy workers place in all, at most
_REPLAYED = 150_000  # actions that are timed again for fewer splits, at most
_FINALISTS = 4


def shortest_orders(
    workers: int, micro_batches: int, times: _Times, *, thorough: bool = True
) -> tuple[Order, ...]:
    """Return every worker's order, the shortest that is found. All ranks find the same.

    Worker w of p holds the stages w and 2 p - 1 - w.

    Args:
        workers: The number of workers.
        micro_batches: The number of micro-batches.
        times: The time of a forward, a whole backward and each of its two parts, by stage.
        thorough: Whether to try all preferences, and to join what need not be split; else greedy workers
            with the first preference decide.
    """
    return _shortest(workers, micro_batches, thorough, *(times[kind] for kind in (_F, _B, _I, _W)))


@lru_cache(maxsize=64)
def _shortest(
    workers: int, micro_batches: int, thorough: bool, *parts: tuple[float, ...]
) -> tuple[Order, ...]:
    times = dict(zip((_F, _B, _I, _W), parts, strict=True))
    actions = 6 * workers * micro_batches
    inner = [range(first, micro_batches - workers) for first in (1, workers)]
    wholes = list(dict.fromkeys([range(0), *inner]))  # all empty ranges are equal
    preferences = _PREFERENCES[: max(1, _PLACED // (3 * actions)) if thorough else 1]
    found = [
        _Greedy(workers, micro_batches, times, preference, whole).orders()
        for whole in wholes
        for preference in preferences
    ]
    found.sort(key=lambda orders: _seconds(orders, times))
    if not thorough:
        return tuple(map(tuple, found[0]))
    best = _FewerSplits(found[0], times, _REPLAYED // actions)
    for orders in found[1:_FINALISTS]:
        other = _FewerSplits(orders, times, _REPLAYED // actions // _FINALISTS)
        if other.score < best.score:
            best = other
    return tuple(map(tuple, best.orders))


class _Greedy:
    """Workers on a V of stages, each of which does the first action by preference that is ready.

    Weight gradients come last, when nothing else is ready. A forward keeps memory until its weight gradients
    are done. A worker keeps at most 2 p at a time, the last of them only on the way back: otherwise forwards
    on the way there could take all the memory, and nothing would ever come back.

    Args:
        workers: The number of workers.
        micro_batches: The number of micro-batches.
        times: The time of every action.
        preference: Kinds and directions, most preferred first.
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
        self._last = 2 * workers - 1
        self._times = times
        self._whole = whole
        self._choices = [  # by worker, most preferred first
            [
                (kind, worker if way == _THERE else self._last - worker)
                for kind, way in (*preference, (_W, _BACK), (_W, _THERE))
            ]
            for worker in range(workers)
        ]
        self._ends: _Ends = {kind: [[] for _ in range(2 * workers)] for kind in (_F, _I, _W)}
        self._clocks = [0.0] * workers

    def orders(self) -> _Orders:
        """Return every worker's order."""
        orders: _Orders = [[] for _ in range(self._workers)]
        turns = [self._next(worker) for worker in range(self._workers)]
        queue = [(turn[0], worker) for worker, turn in enumerate(turns)]
        heapify(queue)
        while queue:
            start, worker = heappop(queue)
            turn = turns[worker]
            if start != turn[0] or start == inf:  # outdated, or waiting for a neighbour
                continue
            orders[worker].append(self._do(worker, turn))
            for changed in range(max(0, worker - 1), min(worker + 2, self._workers)):
                turns[changed] = self._next(changed)
                heappush(queue, (turns[changed][0], changed))
        return orders

    def _do(self, worker: int, turn: _Turn) -> Action:
        """Let a worker do an action; return it, a whole backward in place of the first part of one."""
        start, kind, stage = turn
        i = len(self._ends[kind][stage])
        does = _B if kind is _I and i in self._whole else kind
        self._clocks[worker] = start + self._times[does][stage]
        for part in (_I, _W) if does is _B else (kind,):
            self._ends[part][stage].append(self._clocks[worker])
        return Action(does, stage, i)

    def _next(self, worker: int) -> _Turn:
        """Return what a worker does next, and when; infinity if it waits for a neighbour."""
        best: _Turn = inf, _W, worker
        clock = self._clocks[worker]
        for kind, stage in self._choices[worker]:
            ready = self._ready(kind, stage)
            if ready <= clock:  # at once: nothing less preferred can be earlier
                return clock, kind, stage
            if ready < best[0]:
                best = ready, kind, stage
        return best

    def _ready(self, kind: Kind, stage: int) -> float:
        """Return when a stage's next micro-batch is ready; infinity if that is not known yet, or never."""
        ends = self._ends
        i = len(ends[kind][stage])
        if i == self._micro_batches:
            return inf
        if kind is _F:
            return inf if self._is_full(stage) else _received(kind, stage, i, ends)
        if i >= len(ends[_F if kind is _I else _I][stage]):
            return inf  # the worker itself has to do something before
        if kind is _W:
            return 0.0
        if i in self._whole and len(ends[_W][stage]) < i:
            return inf  # gradients add up in micro-batch order
        return _received(kind, stage, i, ends)

    def _is_full(self, stage: int) -> bool:
        """Return whether the worker of a stage keeps too many micro-batches alive for a forward of it."""
        other = self._last - stage
        forwards, done = self._ends[_F], self._ends[_W]
        alive = len(forwards[stage]) - len(done[stage]) + len(forwards[other]) - len(done[other])
        return alive >= self._last + (stage >= self._workers)


class _FewerSplits:
    """Makes backwards whole again wherever that makes no step longer, many at once where it can.

    Args:
        orders: Every worker's order.
        times: The time of every action.
        tries: The number of other orders that may be timed.

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
        """Return the length of the step, and the number of split backwards."""
        return self._seconds, len(self._splits)

    @property
    def _splits(self) -> list[Action]:
        """Return the first parts of split backwards, the first stage's first."""
        split = [action for order in self.orders for action in order if action.kind is _I]
        return sorted(split, key=lambda action: (action.stage, action.micro_batch))

    def _join(self, splits: Sequence[Action]) -> None:
        """Make these backwards whole; if that makes the step longer, try each half of them instead."""
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
    """Return an order with some backwards whole, each in the place of its first part."""
    joined = []
    for action in order:
        if (action.stage, action.micro_batch) not in whole or action.kind is _F:
            joined.append(action)
        elif action.kind is _I:
            joined.append(Action(_B, action.stage, action.micro_batch))
    return joined


def _seconds(orders: _Orders, times: _Times) -> float:
    """Return when the last worker is done; infinity if they deadlock or break a rule.

    It finds what `simulate` would, but these orders have no messages yet, which makes it many times as fast.
    The rule: gradients of a stage's weights add up in micro-batch order.
    """
    ends: _Ends = {kind: [[] for _ in range(2 * len(orders))] for kind in (_F, _I)}
    complete = [0] * 2 * len(orders)  # micro-batches, by stage
    clocks, at = [0.0] * len(orders), [0] * len(orders)
    left, before = sum(map(len, orders)), -1
    while left != before:
        before = left
        for worker, order in enumerate(orders):
            for action in order[at[worker] :]:
                kind, stage, i = action.kind, action.stage, action.micro_batch
                if kind is not _W:
                    ready = _received(kind, stage, i, ends)
                    if ready == inf:
                        break
                    clocks[worker] = max(clocks[worker], ready)
                clocks[worker] += times[kind][stage]
                if kind is not _W:
                    ends[_F if kind is _F else _I][stage].append(clocks[worker])
                if kind in COMPLETES_WEIGHT_GRADIENT:
                    if complete[stage] != i:
                        return inf
                    complete[stage] += 1
                at[worker] += 1
                left -= 1
    return inf if left else max(clocks)


def _received(kind: Kind, stage: int, i: int, ends: _Ends) -> float:
    """Return when a neighbour has made the input of an action; infinity if it has not yet.

    Args:
        kind: A forward, a whole backward or the first part of one.
        stage: The action's stage.
        i: Its micro-batch.
        ends: When forwards, and whole backwards or first parts of them (as `I`), ended.
    """
    if kind is _F:
        if stage == 0:
            return 0.0
        made = ends[_F][stage - 1]
    else:
        if stage + 1 == len(ends[_I]):
            return 0.0
        made = ends[_I][stage + 1]
    return made[i] if i < len(made) else inf
