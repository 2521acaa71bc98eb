"""One trace of all ranks, for ui.perfetto.dev or chrome://tracing: actions, waiting, messages as arrows.

It is the Trace Event Format (Google, "Trace Event Format", 2016): a process a replica, a thread a rank, times
in microseconds of rank 0's clock. An action's bar begins when what it waits for is there; the wait before is
a bar of its own.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.metrics.clock import Offset, clock_offset
from trainer.pipeline.observed import Observed
from trainer.run import Run
from trainer.schedule.actions import RECEIVES, SENDS, Action, Kind
from trainer.schedule.replay import message_of
from trainer.schedule.timeline import Times

_SHORTEST_WAIT = 20e-6  # seconds; shorter ones are no bars
_NAMES = {
    Kind.FORWARD: "forward",
    Kind.BACKWARD: "backward",
    Kind.AVERAGE: "average",
    Kind.FINISH: "finish averaging",
    Kind.STEP: "update",
}
_Event = dict[str, Any]


@dataclass(frozen=True)
class RankTrace:
    """What one rank has seen.

    Attributes:
        replica: Its replica.
        rank: Its number in the world.
        offset: Of its clock.
        steps: Number, actions and times of every step.
    """

    replica: int
    rank: int
    offset: Offset
    steps: list[tuple[int, Observed]]


class Trace:
    """Collects a rank's steps, and writes those of all ranks into one file."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._mine = RankTrace(run.replica, run.world.rank, clock_offset(run.world), [])

    def add(self, step: int) -> None:
        """Take in the step that the run has just done."""
        self._mine.steps.append((step, self._run.engine.observed))

    def write(self, path: Path) -> None:
        """Write the file; every rank calls it."""
        everyone = self._run.world.all_gather_objects(self._mine)
        if self._run.world.rank == 0:
            path.write_text(json.dumps(trace_events(everyone)) + "\n")


class NoTrace:
    """Where no trace is asked for."""

    def add(self, step: int) -> None:
        """Do nothing."""

    def write(self, path: Path) -> None:
        """Do nothing."""


def build_trace(run: Run) -> Trace | NoTrace:
    """Return the trace of a run; the same on every rank."""
    return Trace(run) if run.config.run.trace else NoTrace()


def trace_events(ranks: list[RankTrace]) -> _Event:
    """Return the content of a trace file."""
    begin = min(
        (t.start + rank.offset.seconds for rank in ranks for _, seen in rank.steps for t in seen.times[:1]),
        default=0.0,
    )
    events = [event for rank in ranks for event in _events(rank, rank.offset.seconds - begin)]
    error = max((rank.offset.error for rank in ranks), default=0.0)
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"clock error of any rank, microseconds": round(error * 1e6, 1)},
    }


def _events(rank: RankTrace, shift: float) -> Iterator[_Event]:
    where = {"pid": rank.replica, "tid": rank.rank}
    for what, name in (("process_name", f"replica {rank.replica}"), ("thread_name", f"rank {rank.rank}")):
        yield {"ph": "M", "name": what, "args": {"name": name}, **where}
    for step, seen in rank.steps:
        for action, times in zip(seen.actions, seen.times, strict=True):
            moved = Times(*((moment + shift) * 1e6 for moment in times))
            yield from _bars(action, moved, step, where)
            yield from _arrow(action, moved, f"{step}/{rank.replica}", where)


def _bars(action: Action, times: Times, step: int, where: _Event) -> Iterator[_Event]:
    name = _NAMES.get(action.kind, action.kind.name.lower().replace("_", " "))
    facts = {"action": str(action), "step": step}
    label = name if action.micro_batch < 0 else f"{name} {action.micro_batch}"
    if times.ready - times.start > _SHORTEST_WAIT * 1e6:
        bar = {"ph": "X", "name": "wait", "cat": "wait", "ts": times.start, "dur": times.ready - times.start}
        yield {**bar, "args": facts, **where}
    bar = {"ph": "X", "name": label, "cat": name, "ts": times.ready, "dur": times.end - times.ready}
    yield {**bar, "args": facts, **where}


def _arrow(action: Action, times: Times, scope: str, where: _Event) -> Iterator[_Event]:
    """Yield one end of a message's arrow: both ends have the same name."""
    if (message := message_of(action)) is None:
        return
    kind, source, target, micro_batch = message
    arrow = {"cat": "message", "name": kind.name.lower().replace("_", " ")}
    arrow["id"] = f"{scope}/{kind.value}{source}>{target}.{micro_batch}"
    if action.kind in SENDS:
        yield {"ph": "s", **arrow, "ts": times.ready, **where}
    elif action.kind in RECEIVES:
        # It ends inside the receive's bar, for that is the bar which it is bound to.
        yield {"ph": "f", "bp": "e", **arrow, "ts": times.end - (times.end - times.ready) / 16, **where}
