"""A trace contains the observations, in the Trace Event Format, on one clock."""

from collections import Counter

import pytest

from tests.support.schedules import training_schedule
from tests.support.trace_format import check_trace
from trainer.metrics.clock import Clock, Offset
from trainer.metrics.trace import RankTrace, trace_events
from trainer.pipeline.timings import StepTimings
from trainer.schedule.actions import RECEIVES, SENDS, Action, Kind, Schedule
from trainer.schedule.simulate import simulate
from trainer.schedule.timeline import ActionTimes, AllReduce

FORWARD, BACKWARD, MESSAGE = 0.02, 0.04, 0.001  # seconds
STAGES, MICRO_BATCHES = 3, 4


def observed(schedule: Schedule, worker: int, clock: float) -> StepTimings:
    """Return the observations of a rank whose clock is ahead by `clock` seconds."""
    times = simulate(schedule, [FORWARD] * STAGES, [BACKWARD] * STAGES, MESSAGE)
    rows = zip(times.starts[worker], times.ends[worker], times.busy[worker], strict=True)
    moments = [ActionTimes(start + clock, end - busy + clock, end + clock) for start, end, busy in rows]
    return StepTimings(schedule.workers[worker], moments)


@pytest.fixture
def events() -> list[dict]:
    schedule = training_schedule("1f1b", STAGES, MICRO_BATCHES)
    ranks = [
        RankTrace(0, worker, steady(-7.0 * worker), [(1, observed(schedule, worker, 7.0 * worker))])
        for worker in range(STAGES)
    ]
    content = trace_events(ranks)
    check_trace(content)
    return content["traceEvents"]


def steady(seconds: float) -> Clock:
    """Return a clock that runs as fast as rank 0's."""
    return Clock(Offset(seconds, 1e-6, at=0.0), Offset(seconds, 2e-6, at=100.0))


def bars(events: list[dict], category: str) -> list[dict]:
    return [event for event in events if event["ph"] == "X" and event["cat"] == category]


def test_every_action_is_a_bar(events: list[dict]) -> None:
    schedule = training_schedule("1f1b", STAGES, MICRO_BATCHES)
    bars = Counter(e["args"]["action"] for e in events if e["ph"] == "X" and e["name"] != "wait")
    assert bars == Counter(str(action) for actions in schedule.workers for action in actions)


def test_bars_last_as_long_as_the_actions(events: list[dict]) -> None:
    for event in events:
        if event["ph"] == "X" and event["cat"] in ("forward", "backward"):
            seconds = FORWARD if event["cat"] == "forward" else BACKWARD
            assert event["dur"] == pytest.approx(seconds * 1e6)


def test_clocks_are_aligned(events: list[dict]) -> None:
    """Stage 1's first forward begins when stage 0's and its message have ended, on another clock."""
    starts = {e["args"]["action"]: e["ts"] for e in events if e["ph"] == "X" and e["name"] != "wait"}
    assert starts["F0.0"] == pytest.approx(0.0, abs=1e-3)
    assert starts["F1.0"] == pytest.approx((FORWARD + MESSAGE) * 1e6)
    assert starts["F2.0"] == pytest.approx(2 * (FORWARD + MESSAGE) * 1e6)


def test_waiting_is_the_bubble(events: list[dict]) -> None:
    waits = sum(e["dur"] for e in events if e["ph"] == "X" and e["name"] == "wait" and e["tid"] == 0)
    schedule = training_schedule("1f1b", STAGES, MICRO_BATCHES)
    timeline = simulate(schedule, [FORWARD] * STAGES, [BACKWARD] * STAGES, MESSAGE)
    assert waits == pytest.approx((timeline.makespan - sum(timeline.busy[0])) * 1e6)


def test_every_message_is_an_arrow_forward_in_time(events: list[dict]) -> None:
    schedule = training_schedule("1f1b", STAGES, MICRO_BATCHES)
    begin = {e["id"]: e for e in events if e["ph"] == "s"}
    end = {e["id"]: e for e in events if e["ph"] == "f"}
    kinds = [action.kind for actions in schedule.workers for action in actions]
    assert len(begin) == sum(kind in SENDS for kind in kinds) == sum(kind in RECEIVES for kind in kinds)
    assert begin.keys() == end.keys()
    assert all(begin[name]["ts"] < end[name]["ts"] for name in begin)
    assert all(begin[name]["tid"] != end[name]["tid"] for name in begin)


def test_ranks_have_names_and_their_order(events: list[dict]) -> None:
    facts = {(e["name"], e["tid"]): e["args"] for e in events if e["ph"] == "M"}
    assert facts["thread_name", 2] == {"name": "rank 2"}
    assert facts["process_name", 0] == {"name": "replica 0"}
    places = [facts["thread_sort_index", rank]["sort_index"] for rank in range(STAGES)]
    assert places == sorted(places)


# --- all-reduces


def averaged(*all_reduces: AllReduce) -> StepTimings:
    """Return a stage's step: it works from second 1 to 4, then waits for its gradients until 6."""
    actions = (Action(Kind.BACKWARD, 0, 0), Action(Kind.REDUCE_START, 0), Action(Kind.REDUCE_WAIT, 0))
    times = [ActionTimes(0.0, 1.0, 4.0), ActionTimes(4.0, 4.0, 4.0), ActionTimes(4.0, 6.0, 7.0)]
    return StepTimings(actions, times, list(all_reduces))


def test_the_bar_of_an_all_reduce_shows_how_much_was_hidden() -> None:
    """From 2 to 7, the rank worked for 2 seconds of the backward and 1 after the wait."""
    seen = averaged(AllReduce("block.1", 4096, 2.0, 7.0), AllReduce("block.0", 1024, 4.5, 5.5))
    content = trace_events([RankTrace(0, 0, steady(0.0), [(3, seen)])])
    check_trace(content)
    first, second = bars(content["traceEvents"], "all-reduce")
    assert (first["name"], first["ts"], first["dur"]) == ("all-reduce block.1", 2e6, 5e6)
    assert first["args"] == {"layer": "block.1", "bytes": 4096, "overlap": 0.6, "step": 3}
    assert second["args"]["overlap"] == 0.0


def test_all_reduces_have_as_few_threads_as_possible() -> None:
    """They are beneath their rank; in the second step, a single one uses the first of these threads."""
    step_1 = averaged(AllReduce("c", 1, 1.0, 3.0), AllReduce("b", 1, 2.0, 4.0), AllReduce("a", 1, 3.0, 5.0))
    step_2 = averaged(AllReduce("c", 1, 11.0, 12.0))
    ranks = [RankTrace(0, rank, steady(0.0), [(1, step_1), (2, step_2)]) for rank in (0, 1)]
    content = trace_events(ranks)
    check_trace(content)
    threads = {e["tid"]: e["args"]["name"] for e in content["traceEvents"] if e["name"] == "thread_name"}
    order = {e["tid"]: e["args"]["sort_index"] for e in content["traceEvents"] if "thread_sort" in e["name"]}
    assert [threads[thread] for thread in sorted(order, key=order.__getitem__)] == [
        *("rank 0", "rank 0 all-reduces", "rank 0 all-reduces"),
        *("rank 1", "rank 1 all-reduces", "rank 1 all-reduces"),
    ]
    found = {
        (bar["args"]["step"], bar["args"]["layer"]): bar["tid"]
        for bar in bars(content["traceEvents"], "all-reduce")
        if threads[bar["tid"]] == "rank 1 all-reduces"
    }
    assert found[1, "c"] == found[1, "a"] == found[2, "c"] != found[1, "b"]


# --- clocks


def test_clock_drift_is_removed() -> None:
    """Rank 1's clock is 5 s behind and a thousandth too fast; both ranks act at the same moments."""
    fast = Clock(Offset(5.0, 1e-6, at=0.0), Offset(4.9, 3e-6, at=100.0))
    moments = (0.0, 10.0, 50.0, 100.0)
    actions = tuple(Action(Kind.FORWARD, 0, i) for i in range(len(moments)))

    def seen(moments: list[float]) -> StepTimings:
        return StepTimings(actions, [ActionTimes(moment, moment, moment + 1e-3) for moment in moments])

    late = [(moment - 5.0) / 0.999 for moment in moments]  # t + 5 - t / 1000 is rank 0's time
    ranks = [
        RankTrace(0, 0, Clock(Offset(0.0, 0.0, 0.0), Offset(0.0, 0.0, 100.0)), [(1, seen(list(moments)))]),
        RankTrace(0, 1, fast, [(1, seen(late))]),
    ]
    content = trace_events(ranks)
    starts = [
        [bar["ts"] for bar in bars(content["traceEvents"], "forward") if bar["tid"] == r] for r in (0, 1)
    ]
    assert starts[0] == [moment * 1e6 for moment in moments]
    assert starts[1] == pytest.approx(starts[0], abs=1e-3)
    assert content["otherData"] == {
        "largest clock error of a rank when measured, microseconds": 3.0,
        "largest clock drift of a rank, corrected linearly, microseconds": 1e5,
    }


def test_a_clock_measured_once_counts_as_steady() -> None:
    once = Offset(2.0, 1e-6, at=5.0)
    assert Clock(once, once).read(7.0) == 9.0
