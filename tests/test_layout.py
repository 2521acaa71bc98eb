"""Ranks, replicas, workers, stages, and the assignment of micro-batches."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.distributed.layout import Layout, assign_micro_batches, micro_batch_sizes
from trainer.errors import UserError


def test_eight_ranks_of_four_stages_are_two_contiguous_groups() -> None:
    layout = Layout(world=8, workers=4)
    assert layout.replicas == 2
    assert [layout.replica(rank) for rank in range(8)] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert [layout.group_rank(rank) for rank in range(8)] == [0, 1, 2, 3, 0, 1, 2, 3]
    assert [list(layout.ranks_of_group(replica)) for replica in range(2)] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_rank_with_two_devices_holds_two_neighbouring_stages() -> None:
    layout = Layout(world=4, workers=4, devices_per_rank=2)
    assert layout.ranks_per_group == 2
    assert layout.replicas == 2
    assert [list(layout.stages_of(group_rank)) for group_rank in range(2)] == [[0, 1], [2, 3]]
    assert [layout.group_rank_of(stage) for stage in range(4)] == [0, 0, 1, 1]
    assert [layout.device_of(stage) for stage in range(4)] == [0, 1, 0, 1]
    assert [layout.rank_of(stage, replica=1) for stage in range(4)] == [2, 2, 3, 3]


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 4))
def test_every_stage_of_every_replica_sits_on_exactly_one_device(
    replicas: int, ranks_per_group: int, devices: int
) -> None:
    layout = Layout(replicas * ranks_per_group, ranks_per_group * devices, devices)
    seen = [
        (layout.replica(rank), stage)
        for rank in range(layout.world)
        for stage in layout.stages_of(layout.group_rank(rank))
    ]
    assert sorted(seen) == [(r, s) for r in range(replicas) for s in range(layout.stages)]
    for replica, stage in seen:
        rank = layout.rank_of(stage, replica)
        assert rank in layout.ranks_of_group(replica)
        assert layout.stages_of(layout.group_rank(rank))[layout.device_of(stage)] == stage


@pytest.mark.parametrize(
    ("world", "devices", "layers", "stages"),
    [
        (1, 1, 10, 1),
        (2, 1, 10, 2),
        (8, 1, 10, 2),
        (3, 1, 10, 1),
        (8, 1, 1, 1),  # cannot be cut
        (1, 4, 10, 4),
        (3, 2, 10, 2),
    ],
)
def test_auto(world: int, devices: int, layers: int, stages: int) -> None:
    assert Layout.of(world, "auto", devices, layers) == Layout(world, stages, devices)


@pytest.mark.parametrize(
    ("world", "stages", "devices", "layers", "message"),
    [
        (
            6,
            4,
            1,
            10,
            "world size 6 is not divisible by the group of 4 ranks (layout.stages=4): start a multiple of "
            "4 ranks, or layout.stages can be 1, 2, 3, 6",
        ),
        (
            3,
            4,
            2,
            10,
            "world size 3 is not divisible by the group of 2 ranks (layout.stages=4, "
            "layout.devices_per_rank=2): start a multiple of 2 ranks, or layout.stages can be 2, 6",
        ),
        (
            4,
            3,
            2,
            10,
            "layout.stages=3 is not divisible by layout.devices_per_rank=2: the workers of a rank belong "
            "to one replica; layout.stages can be 2, 4, 8",
        ),
        (
            12,
            12,
            1,
            10,
            "layout.stages=12 but the model has 10 layers: every stage needs one; "
            "layout.stages can be 1, 2, 3, 4, 6",
        ),
        (
            1,
            "auto",
            4,
            3,
            "layout.stages=4 but the model has 3 layers: every stage needs one; "
            "no number of stages fits layout.devices_per_rank=4, so lower it",
        ),
        (4, 0, 1, 10, 'layout.stages=0 must be "auto" or at least 1'),
        (4, -2, 1, 10, 'layout.stages=-2 must be "auto" or at least 1'),
        (4, "two", 1, 10, "layout.stages='two' must be \"auto\" or a whole number"),
        (4, 2, 0, 10, "layout.devices_per_rank=0 must be at least 1"),
    ],
)
def test_a_layout_that_does_not_fit_says_what_would(
    world: int, stages: int | str, devices: int, layers: int, message: str
) -> None:
    with pytest.raises(UserError) as error:
        Layout.of(world, stages, devices, layers)
    assert str(error.value) == message


def test_the_last_micro_batch_may_be_smaller() -> None:
    assert micro_batch_sizes(10, 4) == (4, 4, 2)
    assert micro_batch_sizes(8, 4) == (4, 4)
    assert micro_batch_sizes(3, 4) == (3,)


@pytest.mark.parametrize(
    ("sizes", "key"), [((0, 4), "batch.global_size=0"), ((4, -1), "batch.micro_size=-1")]
)
def test_sizes_must_be_positive(sizes: tuple[int, int], key: str) -> None:
    with pytest.raises(UserError, match=key):
        micro_batch_sizes(*sizes)


def test_seven_micro_batches_for_three_replicas() -> None:
    assert [list(assign_micro_batches(7, 3, replica)) for replica in range(3)] == [[0, 1, 2], [3, 4], [5, 6]]


@given(st.integers(1, 40), st.integers(0, 200))
def test_dealing_gives_every_micro_batch_once_in_order_and_evenly(replicas: int, more: int) -> None:
    runs = [assign_micro_batches(replicas + more, replicas, replica) for replica in range(replicas)]
    assert [i for run in runs for i in run] == list(range(replicas + more))
    lengths = [len(run) for run in runs]
    assert lengths == sorted(lengths, reverse=True)
    assert max(lengths) - min(lengths) <= 1


def test_fewer_micro_batches_than_replicas() -> None:
    with pytest.raises(UserError) as error:
        assign_micro_batches(3, 4, 0)
    for part in ("batch.global_size", "batch.micro_size", "3 micro-batches", "4 replicas"):
        assert part in str(error.value)
