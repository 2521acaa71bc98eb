"""`run.trace=true` writes one file with every action of every rank."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from tests.parallel.launch import launch

pytestmark = pytest.mark.parallel

_NEEDED = {"X": {"name", "ts", "dur", "pid", "tid"}, "s": {"id", "ts", "pid", "tid"}, "f": {"id", "ts", "bp"}}


def test_trace(small: list[str], tmp_path: Path) -> None:
    overrides = [*small, "layout.stages=2", "train.steps=2", "run.trace=true", "generate.tokens=0"]
    launch(4, overrides, tmp_path).check()
    content = json.loads((tmp_path / "run" / "trace.json").read_text())
    events = content["traceEvents"]
    for event in events:
        assert _NEEDED.get(event["ph"], set()) <= event.keys()
    bars = [event for event in events if event["ph"] == "X"]
    assert {(bar["pid"], bar["tid"]) for bar in bars} == {(0, 0), (0, 1), (1, 2), (1, 3)}
    assert {bar["args"]["step"] for bar in bars} == {1, 2}
    for rank in range(4):
        mine = sorted((bar for bar in bars if bar["tid"] == rank), key=lambda bar: bar["ts"])
        assert sum(bar["cat"] == "forward" for bar in mine) == 2 * 4  # 8 micro-batches of 2 replicas
        for bar, following in pairwise(mine):
            assert bar["ts"] + bar["dur"] <= following["ts"] + 1e-3
    begin = {event["id"]: event["ts"] for event in events if event["ph"] == "s"}
    end = {event["id"]: event["ts"] for event in events if event["ph"] == "f"}
    error = content["otherData"]["clock error of any rank, microseconds"]
    assert begin.keys() == end.keys()
    # In 2 steps: 8 micro-batches there and back, and in 2 replicas a tied weight's gradient there and back.
    assert len(begin) == 2 * (8 * 2 + 2 * 2)
    assert all(begin[message] < end[message] + 2 * error for message in begin)
