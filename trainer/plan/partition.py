"""Divides a model's layers into stages so that the slowest stage is as fast as possible.

A pipeline runs at the pace of its slowest stage, so the cut minimizes that stage's cost. Among the best cuts
it takes the most even one (least sum of squared stage costs), and among those the one that cuts earliest:
under 1F1B earlier stages keep more micro-batches alive, so they should have fewer layers.

Costs are scaled to integers first (every float is an integer over a power of two). So a difference of two
prefix sums is exactly the sum of the slice, and no rounding decides between two cuts.
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import accumulate, pairwise
from math import isfinite, lcm

from trainer.errors import UserError


def partition(costs: Sequence[float], stages: int) -> tuple[int, ...]:
    """Return the first layer of each stage but the first; every stage gets at least one layer.

    Dynamic programming over (stages, layers): O(stages x layers) for the slowest stage, then
    O(stages x layers x log layers) for the most even of the best cuts.

    Args:
        costs: The cost of each layer, in any unit; finite and not negative.
        stages: The number of stages, from 1 to the number of layers.

    Raises:
        ValueError: A cost is negative or not finite, or the number of stages does not fit the layers.
    """
    if not 1 <= stages <= len(costs):
        raise ValueError(f"{stages} stages cannot be cut from {len(costs)} layers")
    prefix = (0, *accumulate(_integers(costs)))
    return _most_even(prefix, stages, _slowest(prefix, stages))


def partition_among_workers(costs: Sequence[float], placement: Sequence[int]) -> tuple[int, ...]:
    """Return the first layer of each stage but the first, for workers that may hold several stages.

    The cut is exact if each worker holds one stage. Otherwise this is a descent from the best cut for the
    slowest stage, for as long as the slowest worker gets faster or the workers more even: one boundary moves
    by one layer or, where that gains nothing, one stage gives a layer to any other, and all boundaries
    between the two move along. It need not end at the optimum.

    Args:
        costs: As in `partition`.
        placement: The worker that holds each stage.

    Raises:
        ValueError: As in `partition`.
    """
    best = partition(costs, len(placement))
    if len(set(placement)) == len(placement):
        return best
    prefix = (0, *accumulate(_integers(costs)))

    def loads(boundaries: tuple[int, ...]) -> tuple[int, int]:
        """Return the cost of the slowest worker, and the sum of squares over the workers."""
        work = [0] * (max(placement) + 1)
        for worker, (first, end) in zip(placement, pairwise((0, *boundaries, len(costs))), strict=True):
            work[worker] += prefix[end] - prefix[first]
        return max(work), sum(each * each for each in work)

    least = loads(best)
    while True:
        for moves in (_neighbours(best), _exchanges(best, placement, prefix)):
            allowed = (
                each for each in moves if all(first < end for first, end in pairwise((0, *each, len(costs))))
            )
            found = min(allowed, key=loads, default=best)
            if loads(found) < least:
                best, least = found, loads(found)
                break
        else:
            return best


def _neighbours(boundaries: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Yield the cuts in which one boundary has moved by one layer."""
    for i in range(len(boundaries)):
        for step in (-1, 1):
            yield _moved(boundaries, i, i + 1, step)


def _exchanges(
    boundaries: tuple[int, ...], placement: Sequence[int], prefix: Sequence[int]
) -> Iterator[tuple[int, ...]]:
    """Yield the cuts in which a stage of the slowest worker has given its first or last layer to another."""
    work = [0] * (max(placement) + 1)
    for worker, (first, end) in zip(placement, pairwise((0, *boundaries, len(prefix) - 1)), strict=True):
        work[worker] += prefix[end] - prefix[first]
    slowest = work.index(max(work))
    for giver, worker in enumerate(placement):
        if worker == slowest:
            for taker in range(len(placement)):
                if taker > giver:
                    yield _moved(boundaries, giver, taker, -1)
                elif taker < giver:
                    yield _moved(boundaries, taker, giver, 1)


def _moved(boundaries: tuple[int, ...], first: int, end: int, step: int) -> tuple[int, ...]:
    """Return a cut whose boundaries from `first` to below `end` have moved by a step."""
    return (*boundaries[:first], *(each + step for each in boundaries[first:end]), *boundaries[end:])


def stage_ranges(boundaries: Sequence[int], layers: int) -> tuple[range, ...]:
    """Return the layers of each stage, given the first layer of each stage but the first."""
    edges = (0, *boundaries, layers)
    return tuple(range(first, end) for first, end in pairwise(edges))


def boundaries_from_user(boundaries: Sequence[int], layers: int, stages: int) -> tuple[int, ...]:
    """Check `layout.boundaries`, and return them as given.

    Raises:
        UserError: There is not one boundary between every two stages, they do not increase, or one leaves the
            first or the last stage without a layer.
    """
    given = f"layout.boundaries={list(boundaries)}".replace(" ", "")
    if len(boundaries) != stages - 1:
        raise UserError(
            f"{given} has {len(boundaries)} numbers, but {stages} stages need {stages - 1}: "
            f"the first layer of every stage but the first"
        )
    for boundary in boundaries:
        if not 1 <= boundary < layers:
            raise UserError(
                f"{given}: {boundary} is out of range; the model has {layers} layers, "
                f"so a boundary is from 1 to {layers - 1}"
            )
    for before, after in pairwise(boundaries):
        if before >= after:
            raise UserError(f"{given} must increase, but {after} follows {before}")
    return tuple(boundaries)


def _integers(costs: Sequence[float]) -> list[int]:
    """Return the costs as integers, all scaled by the same factor."""
    for layer, cost in enumerate(costs):
        if not (isfinite(cost) and cost >= 0):
            raise ValueError(f"the cost of layer {layer} is {cost}; it must be finite and not negative")
    exact = [Fraction(cost) for cost in costs]
    scale = lcm(*(cost.denominator for cost in exact))
    return [int(cost * scale) for cost in exact]


def _slowest(prefix: Sequence[int], stages: int) -> int:
    """Return the least possible cost of the slowest stage.

    best[end] is that cost for the layers before `end`, cut into the number of stages that the loop has
    reached. It grows with `end`, and the last stage's cost falls as its first layer moves right. So the best
    first layer is where the two cross, and the crossing only moves right with `end`.
    """
    layers = len(prefix) - 1
    best = list(prefix)
    for stage in range(1, stages):
        longer = best.copy()
        first = stage
        for end in range(stage + 1, layers + 1):
            while first < end - 1 and best[first] < prefix[end] - prefix[first]:
                first += 1
            longer[end] = max(best[first], prefix[end] - prefix[first])
            if first > stage:
                longer[end] = min(longer[end], max(best[first - 1], prefix[end] - prefix[first - 1]))
        best = longer
    return best[layers]


def _most_even(prefix: Sequence[int], stages: int, limit: int) -> tuple[int, ...]:
    """Return the cut with the least sum of squared stage costs, none of them above `limit`."""
    windows = _windows(prefix, stages, limit)
    rows: list[_Row] = []
    least = [0] * len(prefix)
    for before, ends in pairwise(windows):
        row = _Row(prefix, least, limit, before)
        row.solve(ends.start, ends.stop, before.start, before.stop)
        rows.append(row)
        least = row.least
    cuts = [len(prefix) - 1]
    for row in reversed(rows):
        cuts.append(row.first[cuts[-1]])
    return tuple(reversed(cuts[1:-1]))


def _windows(prefix: Sequence[int], stages: int, limit: int) -> list[range]:
    """Return, for the first 0 to n stages, where they can end so that all stages stay within the limit.

    A greedy fill from the left gives the last such place, and one from the right the first.
    """
    layers = len(prefix) - 1
    latest, earliest = [0], [layers]
    for stage in range(1, stages + 1):
        end = latest[-1]
        while end < layers - (stages - stage) and prefix[end + 1] - prefix[latest[-1]] <= limit:
            end += 1
        latest.append(end)
        first = earliest[-1]
        while first > stages - stage and prefix[earliest[-1]] - prefix[first - 1] <= limit:
            first -= 1
        earliest.append(first)
    earliest.reverse()
    return [range(first, last + 1) for first, last in zip(earliest, latest, strict=True)]


class _Row:
    """The least sums of squares with one more stage, for every place where that stage can end.

    The squared cost of a slice satisfies the quadrangle inequality, so the best first layer only moves right
    with the end. Divide and conquer (Yao, 1980; Galil and Park, 1992) therefore solves the middle end first,
    and on either side of it tries only the first layers that remain possible.
    """

    def __init__(self, prefix: Sequence[int], before: Sequence[int], limit: int, window: range) -> None:
        self.prefix, self.before, self.limit, self.window = prefix, before, limit, window
        self.least = [0] * len(prefix)
        self.first = [0] * len(prefix)

    def solve(self, end_from: int, end_to: int, first_from: int, first_to: int) -> None:
        """Solve the ends from `end_from` to below `end_to`; their first layers lie in the closed range."""
        if end_from >= end_to:
            return
        end = (end_from + end_to) // 2
        total, before = self.prefix[end], self.before
        least, best = -1, first_from
        for first in range(first_from, min(first_to + 1, end, self.window.stop)):
            cost = total - self.prefix[first]
            if cost > self.limit:
                continue
            squares = before[first] + cost * cost
            if least < 0 or squares < least:
                least, best = squares, first
        self.least[end], self.first[end] = least, best
        self.solve(end_from, end, first_from, best)
        self.solve(end + 1, end_to, best, first_to)
