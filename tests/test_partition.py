"""The cut of layers into stages, compared with trying every cut."""

import random
from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations, pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.errors import UserError
from trainer.plan.partition import (
    boundaries_from_user,
    partition,
    partition_among_workers,
    stage_ranges,
)

COSTS = st.one_of(
    st.integers(0, 5),  # many ties
    st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.7]),  # sums that rounding would make unequal
    st.floats(0, 1e12),
)


def stage_costs(costs: Sequence[float], cut: tuple[int, ...]) -> list[Fraction]:
    return [sum(map(Fraction, costs[a:b]), Fraction()) for a, b in pairwise((0, *cut, len(costs)))]


def brute_force(costs: Sequence[float], stages: int) -> tuple[int, ...]:
    """Return the best of all cuts by slowest stage, then squares, then the earliest cuts from the end."""
    return min(
        combinations(range(1, len(costs)), stages - 1),
        key=lambda cut: (
            max(stage_costs(costs, cut)),
            sum(cost * cost for cost in stage_costs(costs, cut)),
            cut[::-1],
        ),
    )


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(st.lists(COSTS, min_size=1, max_size=10), st.data())
def test_equals_brute_force(costs: list[float], data: st.DataObject) -> None:
    stages = data.draw(st.integers(1, len(costs)))
    assert partition(costs, stages) == brute_force(costs, stages)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(1e-3, 1e3), min_size=6, max_size=11))
def test_equals_brute_force_on_layers_of_a_kind(costs: list[float]) -> None:
    for stages in (2, 3, 4):
        assert partition(costs, stages) == brute_force(costs, stages)


@pytest.mark.parametrize(
    ("costs", "stages", "cut"),
    [
        ([1, 1, 1, 1], 2, (2,)),
        ([1, 1, 1, 1, 1], 2, (2,)),  # both cuts are equally good: the first stage gets fewer layers
        ([1] * 10, 4, (2, 4, 7)),  # 2 2 3 3, and not 3 3 3 1
        ([5, 1, 1, 1, 1, 1], 2, (1,)),
        ([0, 0, 0, 0], 3, (1, 2)),  # without any costs, still a layer each
        ([9, 0, 0], 3, (1, 2)),
        ([3], 1, ()),
        ([0.1, 0.2, 0.3], 2, (2,)),  # 0.1 + 0.2 is more than 0.3 in floats
        ([1e300, 1e-300, 1e300], 2, (1,)),
    ],
)
def test_examples(costs: list[float], stages: int, cut: tuple[int, ...]) -> None:
    assert partition(costs, stages) == cut


def test_a_thousand_layers_on_sixty_four_stages() -> None:
    """Its slowest stage is optimal: a greedy fill needs 64 stages of that size, and more of any smaller."""
    generator = random.Random(0)
    costs = [generator.randint(1, 10**6) for _ in range(1000)]
    cut = partition(costs, 64)
    assert len(cut) == 63
    slowest = max(stage_costs(costs, cut))
    assert greedy_stages(costs, slowest) <= 64
    assert greedy_stages(costs, slowest - 1) > 64


def greedy_stages(costs: Sequence[int], limit: int | Fraction) -> int:
    """Return the number of stages of at most `limit` in a fill from the left, which is the minimum."""
    stages, room = 1, limit
    for cost in costs:
        if cost > room:
            stages, room = stages + 1, limit
        room -= cost
        if room < 0:
            return len(costs) + 1
    return stages


@pytest.mark.parametrize("cost", [-1.0, float("nan"), float("inf")])
def test_costs_must_be_finite_and_not_negative(cost: float) -> None:
    with pytest.raises(ValueError, match="cost of layer 1"):
        partition([1.0, cost], 1)


@pytest.mark.parametrize("stages", [0, 4])
def test_stages_must_fit_the_layers(stages: int) -> None:
    with pytest.raises(ValueError, match=f"{stages} stages cannot be cut from 3 layers"):
        partition([1, 1, 1], stages)


def test_ranges_of_stages() -> None:
    assert stage_ranges((4, 8), 10) == (range(4), range(4, 8), range(8, 10))
    assert stage_ranges((), 3) == (range(3),)


def test_given_boundaries() -> None:
    assert boundaries_from_user([4, 8], layers=10, stages=3) == (4, 8)
    assert boundaries_from_user([], layers=10, stages=1) == ()


@pytest.mark.parametrize(
    ("boundaries", "message"),
    [
        ([4], r"layout.boundaries=\[4\] has 1 numbers, but 3 stages need 2"),
        ([4, 6, 8], r"layout.boundaries=\[4,6,8\] has 3 numbers, but 3 stages need 2"),
        ([8, 4], r"layout.boundaries=\[8,4\] must increase, but 4 follows 8"),
        ([4, 4], "must increase, but 4 follows 4"),
        ([0, 4], "0 is out of range; the model has 10 layers, so a boundary is from 1 to 9"),
        ([4, 10], "10 is out of range"),
    ],
)
def test_wrong_given_boundaries(boundaries: list[int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        boundaries_from_user(boundaries, layers=10, stages=3)


def worker_costs(costs: Sequence[float], cut: tuple[int, ...], placement: Sequence[int]) -> list[Fraction]:
    stages = zip(placement, stage_costs(costs, cut), strict=True)
    work = [Fraction()] * (max(placement) + 1)
    for worker, cost in stages:
        work[worker] += cost
    return work


@settings(max_examples=200, deadline=None)
@given(
    st.lists(COSTS, min_size=4, max_size=9), st.sampled_from([(0, 1, 0, 1), (0, 1, 1, 0), (0, 1, 2), (0, 0)])
)
def test_workers_with_several_stages(costs: list[float], placement: tuple[int, ...]) -> None:
    """Never worse than the best cut by stage; moving one boundary never improves it."""
    stages = len(placement)
    cut = partition_among_workers(costs, placement)
    slowest = max(worker_costs(costs, cut, placement))
    assert slowest <= max(worker_costs(costs, partition(costs, stages), placement))
    for i, step in [(i, step) for i in range(len(cut)) for step in (-1, 1)]:
        moved = (*cut[:i], cut[i] + step, *cut[i + 1 :])
        if all(a < b for a, b in pairwise((0, *moved, len(costs)))):
            assert slowest <= max(worker_costs(costs, moved, placement))


@pytest.mark.parametrize("workers", [2, 3, 4])
@pytest.mark.parametrize("way", ["there and there again", "there and back"])
def test_a_transformer_is_cut_by_what_each_worker_holds(way: str, workers: int) -> None:
    """Equal blocks, a cheap embedding and a head of any weight: the slowest worker is that of brute force."""
    there = range(workers)
    placement = (*there, *(there if way == "there and there again" else reversed(there)))
    for blocks, head in product(range(5, 13), (0.2, 1.0, 1.6)):
        costs = [0.1, *[1.0] * blocks, head]
        if len(costs) < len(placement):
            continue
        cuts = combinations(range(1, len(costs)), len(placement) - 1)
        best = min(max(worker_costs(costs, cut, placement)) for cut in cuts)
        assert max(worker_costs(costs, partition_among_workers(costs, placement), placement)) == best


def test_a_worker_with_one_stage_has_the_exact_cut() -> None:
    costs = [3, 1, 4, 1, 5, 9, 2, 6]
    assert partition_among_workers(costs, (0, 1, 2)) == partition(costs, 3)


def test_a_worker_with_a_long_stage_gets_a_short_one() -> None:
    """The best cut by stage is 6 | 1 1 1 | 1 1 1 | 1 1, which gives worker 0 nine and worker 1 five."""
    costs = [6, 1, 1, 1, 1, 1, 1, 1, 1]
    cut = partition_among_workers(costs, (0, 1, 0, 1))
    assert sorted(worker_costs(costs, cut, (0, 1, 0, 1))) == [7, 7]
