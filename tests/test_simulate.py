"""The simulator against closed formulas."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.schedule.actions import Action, Kind, Schedule, Tied
from trainer.schedule.assemble import evaluation_schedule, generation_schedule, training_schedule
from trainer.schedule.simulate import simulate, simulate_with
from trainer.schedule.validate import ScheduleError


@pytest.mark.parametrize("name", ["gpipe", "1f1b"])
@pytest.mark.parametrize("p", range(1, 9))
def test_bubble_of_equal_stages(name: str, p: int) -> None:
    """(p - 1) / (m + p - 1), however long a backward is (Narayanan et al., 2021, section 2.2.1)."""
    for m in range(1, 33):
        for backward in (1.0, 2.0):
            timeline = simulate(training_schedule(name, p, m), [1.0] * p, [backward] * p)
            assert timeline.makespan == (m + p - 1) * (1 + backward)
            assert timeline.bubble == pytest.approx((p - 1) / (m + p - 1), abs=1e-12)


@given(st.lists(st.integers(1, 100), min_size=1, max_size=6), st.integers(1, 12), st.integers(0, 50))
def test_forward_passes_run_at_the_pace_of_the_slowest_stage(times: list[int], m: int, message: int) -> None:
    """The first micro-batch goes through all stages; the others follow, a slowest stage's time each."""
    timeline = simulate(evaluation_schedule(len(times), m), times, [], message)
    assert timeline.makespan == sum(times) + (len(times) - 1) * message + (m - 1) * max(times)


@given(st.lists(st.integers(1, 100), min_size=1, max_size=5), st.integers(1, 6), st.integers(0, 50))
def test_a_token_goes_all_the_way_round(times: list[int], tokens: int, message: int) -> None:
    timeline = simulate(generation_schedule(len(times), tokens), times, [], message)
    rounds = tokens * (sum(times) + (len(times) - 1) * message)
    # A token that the only stage sends to itself also travels, and the last one does too.
    assert timeline.makespan == rounds + tokens * message


def test_messages_and_waiting_by_hand() -> None:
    timeline = simulate(training_schedule("gpipe", 2, 1), [3, 5], [7, 11], message=2)
    # F0.0 sa0.0>1 rg0.0<1 B0.0 A0 Z0 O0 and ra1.0<0 F1.0 B1.0 sg1.0>0 A1 Z1 O1
    assert timeline.starts == ((0, 3, 3, 23, 30, 30, 30), (0, 5, 10, 21, 21, 21, 21))
    assert timeline.ends == ((3, 3, 23, 30, 30, 30, 30), (5, 10, 21, 21, 21, 21, 30))
    assert timeline.busy == ((3, 0, 0, 7, 0, 0, 0), (0, 5, 11, 0, 0, 0, 0))
    assert timeline.bubble == pytest.approx(1 - 26 / 60)


def test_any_action_can_take_time() -> None:
    schedule = training_schedule("gpipe", 2, 1, [Tied(0, 1)])
    work = {Kind.FORWARD: 1, Kind.BACKWARD: 1, Kind.FINISH: 10, Kind.STEP: 100}
    timeline = simulate_with(
        schedule,
        lambda action: work.get(action.kind, 0),
        lambda message: 1000 if message.kind is Kind.SEND_TIED else 0,
    )
    assert timeline.makespan == 4 + 10 + 1000 + 100


def test_nothing_takes_no_time() -> None:
    timeline = simulate(evaluation_schedule(3, 0), [1] * 3, [])
    assert (timeline.makespan, timeline.bubble) == (0, 0)


def test_a_deadlock_is_told() -> None:
    both_wait = Schedule(
        "wrong",
        (0, 1),
        1,
        (
            (Action(Kind.RECEIVE_GRADIENT, 0, 0, 1), Action(Kind.SEND_ACTIVATION, 0, 0, 1)),
            (Action(Kind.RECEIVE_ACTIVATION, 1, 0, 0), Action(Kind.SEND_GRADIENT, 1, 0, 0)),
        ),
    )
    with pytest.raises(ScheduleError) as error:
        simulate(both_wait, [1, 1], [1, 1])
    assert str(error.value) == (
        "deadlock: worker 0 waits in rg0.0<1, for worker 1 waits in ra1.0<0, for worker 0"
    )
