"""A trace is what was observed, in the Trace Event Format, on one clock."""

from collections import Counter

import pytest

from trainer.metrics.clock import Offset
from trainer.metrics.trace import RankTrace, trace_events
from trainer.pipeline.observed import Observed, Times
from trainer.schedule.actions import RECEIVES, SENDS, Schedule
from trainer.schedule.assemble import training_schedule
from trainer.schedule.simulate import simulate

FORWARD, BACKWARD, MESSAGE = 0.02, 0.04, 0.001  # seconds
STAGES, MICRO_BATCHES = 3, 4


def observed(schedule: Schedule, worker: int, clock: float) -> Observed:
    """Return what a rank would see whose clock is ahead by `clock`."""
    times = simulate(schedule, [FORWARD] * STAGES, [BACKWARD] * STAGES, MESSAGE)
    rows = zip(times.starts[worker], times.ends[worker], times.busy[worker], strict=True)
    moments = [Times(start + clock, end - busy + clock, end + clock) for start, end, busy in rows]
    return Observed(schedule.workers[worker], moments)


@pytest.fixture
def events() -> list[dict]:
    schedule = training_schedule("1f1b", STAGES, MICRO_BATCHES)
    ranks = [
        RankTrace(0, worker, Offset(-7.0 * worker, 1e-6), [(1, observed(schedule, worker, 7.0 * worker))])
        for worker in range(STAGES)
    ]
    content = trace_events(ranks)
    assert content["otherData"] == {"clock error of any rank, microseconds": 1.0}
    return content["traceEvents"]


def test_every_action_is_a_bar(events: list[dict]) -> None:
    schedule = training_schedule("1f1b", STAGES, MICRO_BATCHES)
    bars = Counter(e["args"]["action"] for e in events if e["ph"] == "X" and e["name"] != "wait")
    assert bars == Counter(str(action) for actions in schedule.workers for action in actions)


def test_bars_last_as_long_as_the_actions(events: list[dict]) -> None:
    for event in events:
        if event["ph"] == "X" and event["cat"] in ("forward", "backward"):
            seconds = FORWARD if event["cat"] == "forward" else BACKWARD
            assert event["dur"] == pytest.approx(seconds * 1e6)


def test_clocks_are_one(events: list[dict]) -> None:
    """The first forward of stage 1 begins when that of stage 0 and its message are over, on another clock."""
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


def test_ranks_have_names(events: list[dict]) -> None:
    names = {(e["name"], e["tid"]): e["args"]["name"] for e in events if e["ph"] == "M"}
    assert names["thread_name", 2] == "rank 2"
    assert names["process_name", 0] == "replica 0"
