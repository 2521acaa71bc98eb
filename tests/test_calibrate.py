"""Calibration on steps of a known machine recovers that machine: it predicts the same step.

The true step is simulated on a machine with known parameters. Calibration sees only what the ranks would have
observed.
"""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.support.schedules import training_schedule
from trainer.distributed.layout import Layout
from trainer.schedule.actions import RECEIVES, Action, Kind, Schedule, Tied
from trainer.schedule.calibrate import (
    RankObservation,
    calibrate,
    fit_link,
    reduce_points,
    stage_buckets,
    work_times,
)
from trainer.schedule.machine import Bucket, Link, Machine, Network
from trainer.schedule.merge import by_rank
from trainer.schedule.simulate import simulate_on
from trainer.schedule.timeline import ActionTimes, AllReduce, RankTimeline

STAGES, PER_NODE, REPLICAS = 4, 2, 2
SMALL, LARGE = 40_000, 400_000  # bytes
ACTIVATIONS = {(Kind.SEND_ACTIVATION, stage, stage + 1): LARGE for stage in range(STAGES - 1)}
GRADIENTS = {(Kind.SEND_GRADIENT, stage, stage - 1): SMALL for stage in range(1, STAGES)}
TIE = {(Kind.SEND_TIED_GRADIENT, 3, 0): LARGE, (Kind.SEND_REDUCED_GRADIENT, 0, 3): LARGE}

# Times in seconds, typical of a small model on a few cores; stages differ in each of them.
TRUTH = Machine(
    work={
        Kind.FORWARD: (0.010, 0.012, 0.009, 0.011),
        Kind.BACKWARD: (0.021, 0.023, 0.020, 0.026),
        Kind.SEND_ACTIVATION: (1e-4, 2e-4, 1e-4, 0.0),
        Kind.SEND_GRADIENT: (0.0, 2e-4, 1e-4, 3e-4),
        Kind.RECEIVE_ACTIVATION: (0.0, 5e-5, 6e-5, 7e-5),
        Kind.RECEIVE_GRADIENT: (5e-5, 6e-5, 7e-5, 0.0),
        Kind.REDUCE_START: (1e-4, 2e-4, 3e-4, 4e-4),
        Kind.REDUCE_WAIT: (4e-4, 3e-4, 2e-4, 1e-4),
        Kind.UPDATE: (0.003, 0.002, 0.002, 0.004),
    },
    message_bytes=ACTIVATIONS | GRADIENTS,
    network=Network(inside=Link(3e-5, 2e9), between=Link(2e-4, 1e8), ranks_per_node=PER_NODE),
    buckets=[
        [Bucket(f"{stage}.b", 2_000_000, 0.4), Bucket(f"{stage}.a", 600_000, 0.9)] for stage in range(STAGES)
    ],
    ring=Link(bandwidth=4e8),
    cycle=0.001,
    replicas=REPLICAS,
    exchange=0.0005,
    begin=0.002,
    end=0.001,
)


def seen_on(
    machine: Machine, schedules: Sequence[Schedule], replica: int = 0, clock: float = 0.0
) -> list[RankObservation]:
    """Return what the ranks of a replica would observe of a step on the machine.

    Args:
        machine: The machine that the step runs on.
        schedules: One for every replica.
        replica: The replica of the ranks.
        clock: What the clocks show at the step's begin, in seconds.
    """
    timelines = simulate_on(machine, schedules)
    everyone = [
        timeline.by_rank(schedule, machine.begin + clock)
        for timeline, schedule in zip(timelines, schedules, strict=True)
    ]
    placement = schedules[replica].placement
    stage_of = {bucket.layer: stage for stage, each in enumerate(machine.buckets) for bucket in each}
    seen = []
    for worker, step in enumerate(everyone[replica]):
        took = [
            min(ranks[worker].all_reduces[i].end - ranks[worker].all_reduces[i].start for ranks in everyone)
            for i in range(len(step.all_reduces))
        ]
        seen.append(
            RankObservation(
                work=work_times([step]),
                begin=machine.begin,
                end=machine.end,
                step=step,
                sizes={
                    key: size for key, size in machine.message_bytes.items() if placement[key[1]] == worker
                },
                reduced=reduce_points(step, took),
                buckets=stage_buckets(step, stage_of),
            )
        )
    return seen


def learn(machine: Machine, schedules: Sequence[Schedule], replica: int = 0) -> Machine:
    """Return the machine that a replica's ranks calibrate from one step."""
    workers = len(schedules[replica].workers)
    return calibrate(
        seen_on(machine, schedules, replica, clock=1234.5),
        schedules[replica].stages,
        replicas=machine.replicas,
        first=replica * workers,
        ranks_per_node=machine.network.ranks_per_node,
    )


def check_same_step(found: Machine, truth: Machine, schedules: Sequence[Schedule]) -> None:
    """Compare a prediction with the truth: the step, its bubble, and every moment of every replica."""
    for predicted, true in zip(simulate_on(found, schedules), simulate_on(truth, schedules), strict=True):
        assert predicted.seconds == pytest.approx(true.seconds, rel=1e-9)
        assert predicted.bubble == pytest.approx(true.bubble, abs=1e-9)
        for mine, theirs in ((predicted.starts, true.starts), (predicted.ends, true.ends)):
            for worker, moments in enumerate(mine):
                assert moments == pytest.approx(theirs[worker], abs=1e-9)


def schedules_of(*micro_batches: int, name: str = "1f1b", ties: Sequence[Tied] = ()) -> list[Schedule]:
    return [training_schedule(name, STAGES, number, ties) for number in micro_batches]


@pytest.mark.parametrize("name", ["1f1b", "gpipe"])
@pytest.mark.parametrize("micro_batches", [(8, 8), (8, 7), (1, 1)])
def test_a_machine_is_calibrated_from_one_step(name: str, micro_batches: tuple[int, ...]) -> None:
    schedules = schedules_of(*micro_batches, name=name)
    found = learn(TRUTH, schedules)
    for kind, seconds in TRUTH.work.items():
        assert found.work[kind] == pytest.approx(seconds, abs=1e-9), kind
    assert found.message_bytes == TRUTH.message_bytes
    assert found.network.ranks_per_node == PER_NODE
    assert found.network.inside == pytest.approx(TRUTH.network.inside, rel=1e-6)
    assert found.network.between == pytest.approx(TRUTH.network.between, rel=1e-6)
    assert found.ring == pytest.approx(TRUTH.ring, rel=1e-6)
    assert found.cycle == pytest.approx(TRUTH.cycle, rel=1e-6)
    assert found.replicas == REPLICAS
    for mine, true in zip(found.buckets, TRUTH.buckets, strict=True):
        assert [bucket[:2] for bucket in mine] == [bucket[:2] for bucket in true]
        assert [bucket.share for bucket in mine] == pytest.approx([bucket.share for bucket in true])
    assert found.exchange == pytest.approx(TRUTH.exchange)
    assert (found.begin, found.end) == pytest.approx((TRUTH.begin, TRUTH.end))
    check_same_step(found, TRUTH, schedules)


def test_every_replica_recovers_the_machine() -> None:
    schedules = schedules_of(6, 6)
    check_same_step(learn(TRUTH, schedules, replica=1), TRUTH, schedules)


def test_where_nothing_crosses_a_node() -> None:
    truth = replace(TRUTH, network=replace(TRUTH.network, ranks_per_node=None))
    schedules = schedules_of(6, 6)
    found = learn(truth, schedules)
    assert found.network.inside == pytest.approx(TRUTH.network.inside, rel=1e-6)
    check_same_step(found, truth, schedules)


def test_one_replica_averages_nothing() -> None:
    truth = replace(TRUTH, replicas=1, buckets=(), cycle=0.0, ring=Link())
    schedules = schedules_of(6)
    found = learn(truth, schedules)
    assert found.buckets == ()
    check_same_step(found, truth, schedules)


@pytest.mark.parametrize("size", [LARGE, 0])
def test_messages_of_one_size_predict_themselves(size: int) -> None:
    """Latency and bandwidth cannot be separated, and need not be."""
    truth = replace(TRUTH, message_bytes=dict.fromkeys(TRUTH.message_bytes, size))
    schedules = schedules_of(8, 8)
    check_same_step(learn(truth, schedules), truth, schedules)


SLOW = Link(1e-3, LARGE / 0.05)  # a large message takes five times as long as a forward


def test_a_link_slower_than_the_stages() -> None:
    """Messages queue, so they arrive later than latency and bandwidth alone would imply."""
    truth = replace(TRUTH, network=Network(SLOW, SLOW))
    schedules = schedules_of(8, 8, name="gpipe")
    check_same_step(learn(truth, schedules), truth, schedules)


def test_a_link_slower_than_the_stages_and_messages_of_one_size() -> None:
    """Latency, here 1 of 51 ms, cannot be separated from bandwidth: it is counted for each queued message."""
    sizes = dict.fromkeys(TRUTH.message_bytes, LARGE)
    truth = replace(TRUTH, message_bytes=sizes, network=Network(SLOW, SLOW))
    schedules = schedules_of(8, 8, name="gpipe")
    (predicted, _), (true, _) = (simulate_on(each, schedules) for each in (learn(truth, schedules), truth))
    assert true.seconds < predicted.seconds < 1.02 * true.seconds


def test_messages_that_arrived_long_before_are_ignored() -> None:
    """Polling for it takes time too, here 0.1 ms, during which its receiver seems to wait."""
    schedules = schedules_of(8, name="zb_h1")
    truth = replace(
        TRUTH,
        work=dict.fromkeys((Kind.FORWARD, Kind.BACKWARD_INPUT, Kind.BACKWARD_WEIGHT), (0.02,) * STAGES)
        | {Kind.BACKWARD: (0.04,) * STAGES},
        message_bytes=dict.fromkeys([*ACTIVATIONS, *GRADIENTS], LARGE),
        network=Network(Link(bandwidth=1e9)),
        buckets=(),
        replicas=1,
    )
    ranks = []
    for seen in seen_on(truth, schedules):
        times = [
            ActionTimes(each.start, each.start + 1e-4, each.end + 1e-4)
            if action.kind in RECEIVES and each.ready - each.start < 1e-6
            else each
            for action, each in zip(seen.step.actions, seen.step.times, strict=True)
        ]
        ranks.append(replace(seen, step=replace(seen.step, times=tuple(times))))
    latency, bandwidth = calibrate(ranks, STAGES).network.inside
    assert latency + LARGE / bandwidth == pytest.approx(LARGE / 1e9)


def test_ties_cross_the_whole_group() -> None:
    """The owner's gradients are complete only when the use's have arrived; the use steps last."""
    buckets = [[*TRUTH.buckets[0], Bucket("0.tied", 4_000_000, None)], *TRUTH.buckets[1:]]
    truth = replace(TRUTH, buckets=buckets, message_bytes=TRUTH.message_bytes | TIE)
    schedules = schedules_of(6, 6, ties=[Tied(0, 3)])
    found = learn(truth, schedules)
    assert [bucket.share for bucket in found.buckets[0]] == pytest.approx([0.4, 0.9, None])
    check_same_step(found, truth, schedules)


@pytest.mark.parametrize("shares", [(0.99, 0.992, 0.994), (0.0, 0.5, 1.0), (1.0, 1.0, 1.0)])
def test_fused_all_reduces(shares: tuple[float, ...]) -> None:
    """All-reduces that are ready when one starts are fused with it."""
    sizes = (500_000, 300_000, 700_000)
    buckets = [
        [
            Bucket(f"{stage}.{i}", size * (1 + stage), share)
            for i, (size, share) in enumerate(zip(sizes, shares, strict=True))
        ]
        for stage in range(STAGES)
    ]
    truth = replace(TRUTH, buckets=buckets)
    schedules = schedules_of(6, 5)
    check_same_step(learn(truth, schedules), truth, schedules)


@pytest.mark.parametrize("bandwidth", [1e8, 1e9, 1e10])
def test_many_all_reduces_close_together(bandwidth: float) -> None:
    """Also where each is shorter than Horovod's cycle, or than one poll."""
    buckets = [
        [Bucket(f"{stage}.{i}", 10_000 * (i + 1), (i + 1) / 20) for i in range(20)] for stage in range(STAGES)
    ]
    truth = replace(TRUTH, buckets=buckets, ring=Link(bandwidth=bandwidth), cycle=2e-4)
    schedules = schedules_of(6, 6)
    check_same_step(learn(truth, schedules), truth, schedules)


@pytest.mark.parametrize("cycle", [0.0, 0.0005, 0.002])
@pytest.mark.parametrize("bandwidth", [3e8, 1e9])
def test_all_reduces_of_one_size(bandwidth: float, cycle: float) -> None:
    """Cycle and bandwidth cannot be separated, and need not be."""
    buckets = [
        [Bucket(f"{stage}.{i}", 1_000_000, 0.3 * (i + 1)) for i in range(3)] for stage in range(STAGES)
    ]
    truth = replace(TRUTH, buckets=buckets, ring=Link(bandwidth=bandwidth), cycle=cycle)
    schedules = schedules_of(6, 6)
    check_same_step(learn(truth, schedules), truth, schedules)


def test_all_reduces_of_one_size_that_queue() -> None:
    buckets = [
        [Bucket(f"{stage}.{i}", 1_000_000, 0.25 * (i + 1)) for i in range(4)] for stage in range(STAGES)
    ]
    truth = replace(TRUTH, buckets=buckets, ring=Link(bandwidth=2e8), cycle=0.001)
    schedules = schedules_of(6, 6)
    check_same_step(learn(truth, schedules), truth, schedules)


def test_ranks_that_hold_several_stages() -> None:
    """Two ranks with two stages each; transfers within a rank are not messages."""
    schedule = by_rank(training_schedule("1f1b", STAGES, 6), Layout(4, STAGES, devices_per_rank=2))
    truth = replace(TRUTH, network=replace(TRUTH.network, ranks_per_node=1))
    found = learn(truth, [schedule, schedule])
    assert found.network.between == pytest.approx(TRUTH.network.between, rel=1e-6)
    check_same_step(found, truth, [schedule, schedule])


def test_a_delayed_step_changes_nothing() -> None:
    """One of several steps took ten times as long; the step examined in detail is a usual one."""
    schedules = schedules_of(6, 6)
    held_up = replace(TRUTH, work={kind: [10 * each for each in times] for kind, times in TRUTH.work.items()})
    usual, wild = seen_on(TRUTH, schedules), seen_on(held_up, schedules)
    ranks = [
        replace(mine, work=work_times([mine.step, theirs.step, mine.step, mine.step]))
        for mine, theirs in zip(usual, wild, strict=True)
    ]
    check_same_step(calibrate(ranks, STAGES, replicas=2, ranks_per_node=PER_NODE), TRUTH, schedules)


# --- the parts, worked out by hand


def test_work_is_the_mean_of_a_step_and_the_median_of_steps() -> None:
    """Steps with means of 2, 5 and 3 seconds; the time before `ready` is not work."""
    forwards = (Action(Kind.FORWARD, 1, 0), Action(Kind.FORWARD, 1, 1))
    steps = [
        RankTimeline(forwards, (ActionTimes(0, 4, 4 + first), ActionTimes(10, 10, 10 + second)))
        for first, second in ((1, 3), (5, 5), (2, 4))
    ]
    assert work_times(steps) == {(Kind.FORWARD, 1): 3}


def test_links_are_fitted_from_different_sizes() -> None:
    assert fit_link([(100, 2.0), (300, 4.0), (500, 6.0)]) == Link(1.0, 100.0)
    assert fit_link([]) == Link()


def test_one_delayed_message_does_not_bend_the_line() -> None:
    points = [(100, 2.0), (300, 4.0), (500, 6.0)]
    assert fit_link([*points, *points, (300, 1000.0)]) == Link(1.0, 100.0)
    assert fit_link([(100, 2.0), (200, 3.0), (300, 50.0), (400, 5.0), (500, 6.0)]) == Link(1.0, 100.0)


def test_a_rare_size_does_not_spoil_the_fit_of_the_usual_one() -> None:
    usual = [(100, 2.0)] * 9
    for rare in ([(50, 40.0)], [(50, 0.1)], [(200, 40.0)], [(200, 0.1)], [(0, 40.0)]):
        latency, bandwidth = fit_link([*usual, *rare])
        assert latency + 100 / bandwidth == pytest.approx(2.0)


def test_times_of_similar_sizes_are_attributed_to_bandwidth() -> None:
    assert fit_link([(100, 2.0), (100, 2.0), (100, 9.0)]) == Link(0.0, 50.0)
    assert fit_link([(100, 2.0), (110, 2.2)]) == Link(0.0, pytest.approx(50.0))


def test_links_without_a_meaningful_line() -> None:
    assert fit_link([(100, 3.0), (1000, 3.0)]) == Link(3.0)  # large messages take no longer
    assert fit_link([(100, 3.0), (1000, 2.0)]) == Link(2.5)
    assert fit_link([(0, 3.0), (0, 4.0)]) == Link(3.5)
    assert fit_link([(100, 0.5), (1000, 10.0)]).latency == 0.0  # never negative
    assert fit_link([(100, -1.0), (100, -2.0)]) == Link()  # received before sent: the clocks differ


def test_all_reduces_count_from_when_the_ring_was_free() -> None:
    """a ends at 4 and took the last replica 2; b queued after it until 7; d and e were fused with c."""
    all_reduces = (
        AllReduce("a", 10, 1.0, 4.0),
        AllReduce("b", 20, 3.0, 7.0),
        AllReduce("c", 30, 9.0, 12.0),
        AllReduce("d", 40, 10.0, 12.00005),
        AllReduce("e", 50, 11.0, 12.0001),
    )
    points = reduce_points(RankTimeline((), (), all_reduces), [2.0, 4.0, 2.5, 2.0, 1.0])
    assert points == [(10, 2.0), (20, 3.0), (120, pytest.approx(2.5001))]


def test_buckets_are_in_the_order_of_their_start() -> None:
    """The last backward takes from 10 to 20; the tied layer's gradients are complete after it."""
    actions = tuple(Action(Kind.BACKWARD, 2, i) for i in range(2))
    times = (ActionTimes(0.0, 0.0, 5.0), ActionTimes(5.0, 10.0, 20.0))
    all_reduces = (
        AllReduce("tied", 3, 21.0, 22.0),
        AllReduce("late", 2, 20.0, 23.0),
        AllReduce("early", 1, 12.5, 30.0),
    )
    step = RankTimeline(actions, times, all_reduces)
    assert stage_buckets(step, {"early": 2, "late": 2, "tied": 2}) == {
        2: [Bucket("early", 1, 0.25), Bucket("late", 2, 1.0), Bucket("tied", 3, None)]
    }
