"""The action lists of a rank with several devices."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.schedules import training_schedule
from trainer.distributed.layout import Layout
from trainer.schedule.actions import Kind, Schedule, Tied
from trainer.schedule.assemble import evaluation_schedule, generation_schedule
from trainer.schedule.merge import by_rank, merge_for_rank
from trainer.schedule.validate import validate


def merged(schedule: Schedule, devices: int) -> Schedule:
    return by_rank(schedule, Layout(schedule.stages // devices, schedule.stages, devices))


@pytest.mark.parametrize("devices", [1, 2, 3])
@settings(max_examples=50, deadline=None)
@given(st.sampled_from(["gpipe", "1f1b"]), st.integers(1, 3), st.integers(1, 9), st.booleans())
def test_merged_lists_are_valid_and_complete(devices: int, name: str, ranks: int, m: int, tied: bool) -> None:
    p = ranks * devices
    ties = [Tied(0, p - 1)] if tied else []
    schedules = [training_schedule(name, p, micro_batches, ties) for micro_batches in (m + 1, m)]
    validate([merged(schedule, devices) for schedule in schedules], ties)
    for schedule in (*schedules, evaluation_schedule(range(p), m), generation_schedule(range(p), m)):
        result = merged(schedule, devices)
        validate([result])
        for rank, actions in enumerate(result.workers):
            workers = schedule.workers[rank * devices : (rank + 1) * devices]
            assert sorted(map(str, actions)) == sorted(str(action) for own in workers for action in own)
            for own in workers:
                assert tuple(action for action in actions if action.stage == own[0].stage) == own


def test_one_worker_keeps_its_list() -> None:
    schedule = training_schedule("1f1b", 3, 5)
    assert merge_for_rank(schedule, [1]) == schedule.workers[1]


def test_devices_overlap() -> None:
    """Micro-batch 1 goes to the first device before micro-batch 0 goes to the second."""
    actions = merge_for_rank(training_schedule("gpipe", 2, 3), [0, 1])
    computed = " ".join(str(action) for action in actions if action.kind in (Kind.FORWARD, Kind.BACKWARD))
    assert computed == "F0.0 F0.1 F1.0 F0.2 F1.1 F1.2 B1.0 B1.1 B0.0 B1.2 B0.1 B0.2"


def test_waiting_for_other_replicas_comes_after_all_computation() -> None:
    actions = merge_for_rank(training_schedule("1f1b", 4, 8, [Tied(0, 3)]), range(4))
    kinds = [action.kind for action in actions]
    last_backward = max(i for i, kind in enumerate(kinds) if kind is Kind.BACKWARD)
    assert kinds.index(Kind.REDUCE_START) < last_backward < kinds.index(Kind.REDUCE_WAIT)
    assert kinds[-4:] == [Kind.UPDATE] * 4
