"""The simulator, compared with closed formulas."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.schedules import training_schedule
from trainer.schedule.actions import Action, Kind, Schedule, Tied
from trainer.schedule.assemble import evaluation_schedule, generation_schedule
from trainer.schedule.machine import Bucket, Link, Machine, Network
from trainer.schedule.simulate import simulate, simulate_on
from trainer.schedule.validate import ScheduleError


@pytest.mark.parametrize("name", ["gpipe", "1f1b"])
@pytest.mark.parametrize("p", range(1, 9))
def test_bubble_of_equal_stages(name: str, p: int) -> None:
    """(p - 1) / (m + p - 1), for any length of backwards (Narayanan et al., 2021, section 2.2.1)."""
    for m in range(1, 33):
        for backward in (1.0, 2.0):
            timeline = simulate(training_schedule(name, p, m), [1.0] * p, [backward] * p)
            assert timeline.makespan == (m + p - 1) * (1 + backward)
            assert timeline.bubble == pytest.approx((p - 1) / (m + p - 1), abs=1e-12)


@given(st.lists(st.integers(1, 100), min_size=1, max_size=6), st.integers(1, 12), st.integers(0, 50))
def test_forward_passes_run_at_the_pace_of_the_slowest_stage(times: list[int], m: int, message: int) -> None:
    """The first micro-batch passes all stages; the others follow at intervals of the slowest stage's time."""
    timeline = simulate(evaluation_schedule(range(len(times)), m), times, [], message)
    assert timeline.makespan == sum(times) + (len(times) - 1) * message + (m - 1) * max(times)


@given(st.lists(st.integers(1, 100), min_size=1, max_size=5), st.integers(1, 6), st.integers(0, 50))
def test_a_token_goes_all_the_way_round(times: list[int], tokens: int, message: int) -> None:
    timeline = simulate(generation_schedule(range(len(times)), tokens), times, [], message)
    messages = len(times) if len(times) > 1 else 0  # no message from a stage to itself
    assert timeline.makespan == tokens * (sum(times) + messages * message)


def test_messages_and_waiting_by_hand() -> None:
    timeline = simulate(training_schedule("gpipe", 2, 1), [3, 5], [7, 11], message=2)
    # F0.0 sa0.0>1 rg0.0<1 B0.0 A0 Aw0 U0 and ra1.0<0 F1.0 B1.0 sg1.0>0 A1 Aw1 U1
    assert timeline.starts == ((0, 3, 3, 23, 30, 30, 30), (0, 5, 10, 21, 21, 21, 21))
    assert timeline.ends == ((3, 3, 23, 30, 30, 30, 30), (5, 10, 21, 21, 21, 21, 30))
    assert timeline.busy == ((3, 0, 0, 7, 0, 0, 0), (0, 5, 11, 0, 0, 0, 0))
    assert timeline.bubble == pytest.approx(1 - 26 / 60)


def test_any_action_can_take_time() -> None:
    schedule = training_schedule("gpipe", 2, 1, [Tied(0, 1)])
    kinds = {Kind.FORWARD: 1, Kind.BACKWARD: 1, Kind.REDUCE_WAIT: 10, Kind.UPDATE: 100}
    machine = Machine(
        {kind: (seconds, seconds) for kind, seconds in kinds.items()},
        message_bytes={(Kind.SEND_REDUCED_GRADIENT, 0, 1): 2000},
        network=Network(Link(bandwidth=2.0)),
        begin=7,
        end=5,
    )
    (timeline,) = simulate_on(machine, [schedule])
    assert timeline.makespan == 4 + 10 + 1000 + 100
    assert timeline.seconds == timeline.makespan + 7 + 5


@pytest.mark.parametrize("tied", [0, 50, 2000])
def test_norms_are_exchanged_when_the_last_rank_has_arrived(tied: int) -> None:
    """Worked out by hand: both stages' forward and backward, the tied gradient's way back, an exchange."""
    schedule = training_schedule("gpipe", 2, 1, [Tied(0, 1)])
    work = {Kind.FORWARD: (1, 1), Kind.BACKWARD: (1, 1), Kind.UPDATE: (5, 3)}
    sizes = {(Kind.SEND_REDUCED_GRADIENT, 0, 1): tied}
    machine = Machine(work, message_bytes=sizes, network=Network(Link(bandwidth=2.0)), exchange=10)
    (timeline,) = simulate_on(machine, [schedule])
    assert timeline.ends[1][-2] == 4 + tied / 2  # the last to arrive waits only for the exchange
    assert [starts[-1] for starts in timeline.starts] == [4, 4 + tied / 2]
    assert [ends[-1] for ends in timeline.ends] == [4 + tied / 2 + 10 + 5, 4 + tied / 2 + 10 + 3]


def test_an_empty_schedule_takes_no_time() -> None:
    timeline = simulate(evaluation_schedule(range(3), 0), [1] * 3, [])
    assert (timeline.makespan, timeline.bubble) == (0, 0)


def test_a_deadlock_is_an_error() -> None:
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
        "deadlock: worker 0 waits in rg0.0<1 for worker 1, which waits in ra1.0<0 for worker 0"
    )


def test_waiting_for_a_missing_action_is_a_deadlock() -> None:
    waits = Schedule("wrong", (0, 1), 1, ((), (Action(Kind.RECEIVE_ACTIVATION, 1, 0, 0),)))
    with pytest.raises(ScheduleError) as error:
        simulate(waits, [1, 1], [1, 1])
    assert str(error.value) == "deadlock: worker 1 waits in ra1.0<0 for an action that no worker performs"


def test_messages_of_a_link_follow_one_another() -> None:
    """A stage is ten times as fast as its link, so the link sets the pace: bytes / bandwidth a message."""
    m, latency, seconds = 6, 3.0, 10.0
    machine = Machine(
        {Kind.FORWARD: (1.0, 2.0)},
        message_bytes={(Kind.SEND_ACTIVATION, 0, 1): 500},
        network=Network(Link(latency, 500 / seconds)),
    )
    (timeline,) = simulate_on(machine, [evaluation_schedule(range(2), m)])
    assert timeline.makespan == 1 + m * seconds + latency + 2


@pytest.mark.parametrize(("per_node", "crossings"), [(None, 0), (1, 3), (2, 1), (3, 1), (4, 0)])
def test_links_between_nodes(per_node: int | None, crossings: int) -> None:
    network = Network(Link(1.0), Link(100.0), per_node)
    machine = Machine({Kind.FORWARD: (1.0,) * 4}, network=network)
    (timeline,) = simulate_on(machine, [evaluation_schedule(range(4), 1)])
    assert timeline.makespan == 4 + crossings * 100 + (3 - crossings)


def test_replicas_placed_differently_on_nodes_differ() -> None:
    """Three stages on nodes of four ranks: replica 0 stays on one node, 1 and 2 cross once, 3 does not."""
    schedule = evaluation_schedule(range(3), 1)
    machine = Machine({Kind.FORWARD: (1.0,) * 3}, network=Network(Link(0.0), Link(100.0), 4), replicas=4)
    makespans = [timeline.makespan for timeline in simulate_on(machine, [schedule] * 4)]
    assert makespans == [3, 103, 103, 3]


@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_a_ring_moves_its_part_of_the_bytes(replicas: int) -> None:
    """2 (R - 1) rounds of a latency and an R-th of the bytes (Patarasuk and Yuan, 2009)."""
    machine = Machine({}, buckets=[[Bucket("a", 1200)]], ring=Link(5.0, 100.0), replicas=replicas)
    (timeline,) = simulate_on(machine, [training_schedule("gpipe", 1, 1)])
    assert timeline.makespan == pytest.approx(2 * (replicas - 1) * (5 + 12 / replicas))


def test_all_reduces_overlap_with_the_backward_and_follow_one_another() -> None:
    """A stage of three layers: their all-reduces begin within the last backward, which takes 30 seconds.

    backward    0 ........ 10 ........ 20 ........ 30
    c complete             10 ---- 24
    b complete                     24 (20) -- 38
    a, tied                                   38 (30) -- 52
    """
    buckets = [[Bucket("c", 70, 1 / 3), Bucket("b", 70, 2 / 3), Bucket("a", 70, None)]]
    machine = Machine({Kind.BACKWARD: (30.0,)}, buckets=buckets, ring=Link(0.0, 5.0), replicas=2)
    (timeline,) = simulate_on(machine, [training_schedule("gpipe", 1, 1)])
    assert machine.all_reduce(70) == pytest.approx(14)
    times = [(each.layer, round(each.start, 6), round(each.end, 6)) for each in timeline.all_reduces[0]]
    assert times == [("c", 10, 24), ("b", 20, 38), ("a", 30, 52)]
    assert timeline.makespan == pytest.approx(52)


def test_a_late_replica_holds_up_the_ring() -> None:
    """Replica 1 has one more micro-batch; replica 0 waits in FINISH, which is its bubble."""
    work = {Kind.FORWARD: (1.0,), Kind.BACKWARD: (2.0,)}
    machine = Machine(work, buckets=[[Bucket("a", 100)]], ring=Link(0.0, 10.0), replicas=2)
    schedules = [training_schedule("1f1b", 1, micro_batches) for micro_batches in (3, 4)]
    early, late = simulate_on(machine, schedules)
    assert early.makespan == late.makespan == 4 * 3 + 10
    assert early.bubble == pytest.approx((3 + 10) / 22)
    assert late.bubble == pytest.approx(10 / 22)


@pytest.mark.slow
def test_a_thousand_ranks() -> None:
    """The closed form still holds there, as one group and as groups of eight."""
    for stages, replicas in ((1024, 1), (8, 128)):
        schedule = training_schedule("1f1b", stages, 64)
        work = {Kind.FORWARD: (1.0,) * stages, Kind.BACKWARD: (2.0,) * stages}
        timelines = simulate_on(Machine(work, replicas=replicas), [schedule] * replicas)
        assert {timeline.makespan for timeline in timelines} == {(64 + stages - 1) * 3}
