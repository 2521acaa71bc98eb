"""One trace of all ranks, for ui.perfetto.dev or chrome://tracing.

The file has the Trace Event Format (Google, "Trace Event Format", 2016). A process is a replica, a thread is
a rank, and times are microseconds of rank 0's clock. Actions are bars, and messages are arrows. The bar of an
action begins once it no longer waits; the wait has its own bar.

A rank's all-reduces overlap with its actions and with one another, but bars of one thread must nest. So they
get separate threads right below the rank, as few as keep them apart. (Asynchronous events, of phases b and e,
may overlap. But Perfetto binds them to the process, and shows those of all its ranks together above the
first.)
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from trainer.metrics.best_effort import replace
from trainer.metrics.clock import Clock, clock_offset
from trainer.metrics.observer import RunObserver
from trainer.pipeline.timings import StepTimings
from trainer.run import Run
from trainer.schedule.actions import SENDS, Action, Kind
from trainer.schedule.replay import Message, message_of
from trainer.schedule.timeline import ActionTimes, AllReduce, RankTimeline, lanes
from trainer.step import StepResult

_SHORTEST_WAIT = 20e-6  # seconds; shorter waits get no bar
_JUST_BEFORE = 1e-6  # seconds before a receive's end that an arrow ends
_NAMES = {
    Kind.FORWARD: "forward",
    Kind.BACKWARD: "backward",
    Kind.BACKWARD_INPUT: "input gradient",
    Kind.BACKWARD_WEIGHT: "weight gradient",
    Kind.REDUCE_START: "average",
    Kind.REDUCE_WAIT: "finish averaging",
    Kind.UPDATE: "update",
}
_Event = dict[str, Any]


@dataclass(frozen=True)
class RankTrace:
    """The steps of one rank.

    Attributes:
        replica: The rank's replica.
        rank: The rank's number in the world.
        clock: The rank's clock.
        steps: The number and the timings of every step.
    """

    replica: int
    rank: int
    clock: Clock
    steps: list[tuple[int, StepTimings]]

    def timelines(self, begin: float = 0.0) -> Iterator[tuple[int, RankTimeline]]:
        """Yield the number and timeline of every step, in seconds of rank 0's clock since `begin`."""
        for step, timings in self.steps:
            yield step, timings.timeline.on(lambda moment: self.clock.read(moment) - begin)


class _Reduced(NamedTuple):
    """An all-reduce, its step, and the share of its time in which the rank worked rather than waited."""

    step: int
    reduce: AllReduce
    overlap: float


class _Arrows:
    """Numbers messages, so both ends of an arrow share an id; Perfetto drops arrows whose id is a text."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[int, int, Message], int] = {}

    def number(self, step: int, thread: _Event, message: Message) -> int:
        """Return the number of a message, from 1."""
        return self._numbers.setdefault((step, thread["pid"], message), len(self._numbers) + 1)


class Trace(RunObserver):
    """Collects a rank's steps, and writes those of all ranks into one file at the end.

    Args:
        run: The run.
        path: The file.
    """

    def __init__(self, run: Run, path: Path) -> None:
        self._run = run
        self._path = path
        self._offset = clock_offset(run.world)
        self._steps: list[tuple[int, StepTimings]] = []

    def step(self, result: StepResult) -> None:
        """Keep the run's latest step."""
        self._steps.append((result.step, self._run.engine.timings))

    def end(self) -> None:
        """Write the file."""
        run = self._run
        clock = Clock(self._offset, clock_offset(run.world))
        traces = run.world.all_gather_objects(RankTrace(run.replica, run.world.rank, clock, self._steps))
        if run.world.rank == 0:
            replace(self._path, json.dumps(trace_events(traces)) + "\n")


def trace_events(ranks: Sequence[RankTrace]) -> _Event:
    """Return the content of a trace file.

    Args:
        ranks: The steps of every rank of the world, by rank.
    """
    begin = min(
        (rank.clock.read(timings.times[0].start) for rank in ranks for _, timings in rank.steps), default=0.0
    )
    all_lanes = [_lanes(rank.timelines(begin)) for rank in ranks]
    most = max(map(len, all_lanes), default=0)
    events: list[_Event] = []
    arrows = _Arrows()
    for rank, of_rank in zip(ranks, all_lanes, strict=True):
        # A viewer may treat thread ids as unique across processes, so they are.
        threads = [{"pid": rank.replica, "tid": rank.rank + i * len(ranks)} for i in range(1 + len(of_rank))]
        events += _names(rank, threads, rank.rank * (1 + most))
        for step, timeline in rank.timelines(begin):
            events += _actions(step, timeline, threads[0], arrows)
        for lane, thread in zip(of_rank, threads[1:], strict=True):
            events += [_all_reduce(reduced, thread) for reduced in lane]
    error = max((rank.clock.error for rank in ranks), default=0.0)
    drift = max((abs(rank.clock.drift) for rank in ranks), default=0.0)
    facts = {
        "largest clock error of a rank when measured, microseconds": _microseconds(error),
        "largest clock drift of a rank, corrected linearly, microseconds": _microseconds(drift),
    }
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": facts}


def _microseconds(seconds: float) -> float:
    """Convert seconds to microseconds, rounded to the nanosecond."""
    return round(seconds * 1e9) / 1e3


def _lanes(timelines: Iterator[tuple[int, RankTimeline]]) -> list[list[_Reduced]]:
    """Assign a rank's all-reduces to as few lanes as possible without overlap within a lane."""
    reduced = (
        _Reduced(step, reduce, _overlap(timeline, reduce))
        for step, timeline in timelines
        for reduce in timeline.all_reduces
    )
    ordered = sorted(reduced, key=lambda each: each.reduce.start)
    by_lane: dict[int, list[_Reduced]] = {}
    for each, lane in zip(ordered, lanes([each.reduce for each in ordered]), strict=True):
        by_lane.setdefault(lane, []).append(each)
    return list(by_lane.values())


def _overlap(timeline: RankTimeline, reduce: AllReduce) -> float:
    """Return the share of an all-reduce's time in which the rank worked rather than waited."""
    worked = sum(
        max(min(times.end, reduce.end) - max(times.ready, reduce.start), 0.0) for times in timeline.times
    )
    length = reduce.end - reduce.start
    return worked / length if length else 0.0


def _names(rank: RankTrace, threads: Sequence[_Event], first: int) -> Iterator[_Event]:
    """Yield the names and the order of a rank's threads: first its actions, then its all-reduces."""
    facts: list[tuple[str, dict[str, str | int], _Event]] = [
        ("process_name", {"name": f"replica {rank.replica}"}, threads[0]),
        ("process_sort_index", {"sort_index": rank.replica}, threads[0]),
    ]
    for i, thread in enumerate(threads):
        name = f"rank {rank.rank} all-reduces" if i else f"rank {rank.rank}"
        facts.append(("thread_name", {"name": name}, thread))
        facts.append(("thread_sort_index", {"sort_index": first + i}, thread))
    for what, args, thread in facts:
        yield {"ph": "M", "name": what, "args": args, "ts": 0, **thread}


def _bar(name: str, category: str, start: float, end: float) -> _Event:
    ts = _microseconds(start)
    return {"ph": "X", "name": name, "cat": category, "ts": ts, "dur": round(_microseconds(end) - ts, 3)}


def _actions(step: int, timeline: RankTimeline, thread: _Event, arrows: _Arrows) -> Iterator[_Event]:
    for action, times in zip(timeline.actions, timeline.times, strict=True):
        name = _NAMES.get(action.kind, action.kind.name.lower().replace("_", " "))
        facts = {"args": {"action": str(action), "step": step}, **thread}
        label = name if action.micro_batch < 0 else f"{name} {action.micro_batch}"
        if times.ready - times.start > _SHORTEST_WAIT:
            yield {**_bar("wait", "wait", times.start, times.ready), **facts}
        yield {**_bar(label, name, times.ready, times.end), **facts}
        if (message := message_of(action)) is not None:
            name = message.kind.name.lower().replace("_", " ")
            arrow = {"cat": "message", "name": name, "id": arrows.number(step, thread, message)}
            yield {**arrow, **_end_of_arrow(action, times), **thread}


def _end_of_arrow(action: Action, times: ActionTimes) -> _Event:
    """Return one end of a message's arrow; it lies within the bar that it is bound to."""
    if action.kind in SENDS:
        return {"ph": "s", "ts": _microseconds(times.ready)}
    before = min(_JUST_BEFORE, (times.end - times.ready) / 2)
    return {"ph": "f", "bp": "e", "ts": _microseconds(times.end - before)}


def _all_reduce(reduced: _Reduced, thread: _Event) -> _Event:
    step, (layer, size, start, end), overlap = reduced
    args = {"layer": layer, "bytes": size, "overlap": round(overlap, 3), "step": step}
    return {**_bar(f"all-reduce {layer}", "all-reduce", start, end), "args": args, **thread}
