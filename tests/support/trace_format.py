"""The rules of the Trace Event Format, as Perfetto and chrome://tracing enforce them.

Written from the format's description (Google, "Trace Event Format", 2016), and from what Perfetto's importer
drops: arrows whose id is a string, and bars of one thread that overlap without nesting.
"""

import math
from collections import Counter, defaultdict
from typing import Any

PHASES = {"X", "M", "s", "f", "b", "e"}
METADATA = {
    "process_name": ("name", str),
    "thread_name": ("name", str),
    "process_sort_index": ("sort_index", int),
    "thread_sort_index": ("sort_index", int),
}
ROUNDING = 2e-3  # microseconds

Event = dict[str, Any]


def check_trace(content: Event) -> None:
    """Raise an AssertionError if a viewer would reject, drop or misplace any event."""
    assert content["displayTimeUnit"] in ("ms", "ns")
    events = content["traceEvents"]
    for event in events:
        _check_fields(event)
    _check_arrows(events)
    _check_asynchronous([event for event in events if event["ph"] in "be"])
    by_thread = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            by_thread[event["pid"], event["tid"]].append(event)
    for bars in by_thread.values():
        _check_nesting(bars)
    _check_metadata(events)


def _check_fields(event: Event) -> None:
    assert event["ph"] in PHASES, event
    assert isinstance(event["name"], str), event
    assert all(type(event[key]) is int for key in ("pid", "tid")), event
    assert _is_number(event["ts"]), event
    assert isinstance(event.get("args", {}), dict), event
    if event["ph"] == "X":
        assert _is_number(event["dur"]), event
        assert event["dur"] >= 0, event
    if event["ph"] in "sfbe":
        assert type(event["id"]) is int, event
    if event["ph"] in "Xsfbe":
        assert isinstance(event["cat"], str), event


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _check_arrows(events: list[Event]) -> None:
    """Check that every arrow has two ends, each within a bar of its thread."""
    begins, ends = (
        {(event["cat"], event["name"], event["id"]): event for event in events if event["ph"] == phase}
        for phase in "sf"
    )
    assert begins.keys() == ends.keys()
    assert len(begins) + len(ends) == sum(event["ph"] in "sf" for event in events)
    bars = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            bars[event["pid"], event["tid"]].append(event)
    for event in [*begins.values(), *ends.values()]:
        around = [
            bar
            for bar in bars[event["pid"], event["tid"]]
            if bar["ts"] - ROUNDING <= event["ts"] <= bar["ts"] + bar["dur"] + ROUNDING
        ]
        assert around, event
        if event["ph"] == "f":
            assert event["bp"] == "e", event  # otherwise it binds to the following bar


def _check_asynchronous(events: list[Event]) -> None:
    """Check that begins and ends of one category and id match, innermost first."""
    open_events = defaultdict(list)
    for event in sorted(events, key=lambda event: event["ts"]):
        stack = open_events[event["pid"], event["cat"], event["id"]]
        if event["ph"] == "b":
            stack.append(event)
        else:
            assert stack, event
            assert stack.pop()["name"] == event["name"]
    assert not any(open_events.values())


def _check_nesting(bars: list[Event]) -> None:
    stack: list[float] = []
    for bar in sorted(bars, key=lambda bar: (bar["ts"], -bar["dur"])):
        while stack and stack[-1] <= bar["ts"] + ROUNDING:
            stack.pop()
        end = bar["ts"] + bar["dur"]
        assert not stack or end <= stack[-1] + ROUNDING, f"{bar} overlaps the bar before without nesting"
        stack.append(end)


def _check_metadata(events: list[Event]) -> None:
    """Check that every process and thread with events has a name and its own place."""
    known = defaultdict(dict)
    for event in events:
        if event["ph"] == "M":
            key, kind = METADATA[event["name"]]
            assert type(event["args"][key]) is kind, event
            owner = (event["pid"],) if event["name"].startswith("process") else (event["pid"], event["tid"])
            assert known[event["name"]].setdefault(owner, event["args"][key]) == event["args"][key], event
    for what in ("process", "thread"):
        owners = {
            (event["pid"],) if what == "process" else (event["pid"], event["tid"])
            for event in events
            if event["ph"] != "M"
        }
        assert owners <= known[f"{what}_name"].keys()
        places = known[f"{what}_sort_index"]
        assert owners <= places.keys()
        assert max(Counter(places.values()).values()) == 1
