"""A step's timeline reads back as written; an invalid file is reported, not drawn."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.schedules import training_schedule
from tests.support.steps import MESSAGE, MICRO_BATCHES, STAGES, step
from trainer.errors import UserError
from trainer.metrics.timeline import StepTimeline
from trainer.schedule.simulate import simulate

Content = dict[str, Any]


def test_it_reads_back_to_the_same_bits(tmp_path: Path) -> None:
    timeline = step()
    timeline.save(tmp_path / "timeline.json")
    assert StepTimeline.load(tmp_path / "timeline.json") == timeline


def test_by_rank_keeps_what_was_simulated() -> None:
    """Shifted by the step's begin; an action first waits, then works."""
    schedule = training_schedule("1f1b", STAGES, MICRO_BATCHES)
    timeline = simulate(schedule, [1.0] * STAGES, [2.0] * STAGES, MESSAGE)
    for worker, rank in enumerate(timeline.by_rank(schedule, begin=10.0)):
        assert rank.actions == schedule.workers[worker]
        assert [times.start - 10.0 for times in rank.times] == pytest.approx(timeline.starts[worker])
        assert [times.end - 10.0 for times in rank.times] == pytest.approx(timeline.ends[worker])
        assert [times.end - times.ready for times in rank.times] == pytest.approx(timeline.busy[worker])
        idle = timeline.ends[worker][-1] - sum(timeline.busy[worker])
        assert rank.waited == pytest.approx(idle)


BROKEN: dict[str, tuple[Callable[[Content], Any], str]] = {
    "no object": (lambda content: [content], "it must be an object with clock_error, measured"),
    "a key too many": (lambda content: content | {"colour": "red"}, "it must be an object"),
    "a key too few": (lambda content: {"title": "gpt"}, "it must be an object"),
    "seconds": (lambda content: content | {"seconds": "x"}, "seconds: 'x' is not a number"),
    "seconds that are no number": (lambda content: content | {"seconds": math.nan}, "seconds: nan is not"),
    "seconds that are true": (lambda content: content | {"seconds": True}, "seconds: True is not"),
    "seconds without end": (lambda content: content | {"predicted_seconds": math.inf}, "inf is not a number"),
    "seconds beyond floats": (lambda content: content | {"seconds": 10**400}, "too large"),
    "step": (lambda content: content | {"step": 1.5}, "step: 1.5 is not of type int"),
    "title": (lambda content: content | {"title": None}, "title: None is not of type str"),
    "no rank measured": (lambda content: content | {"measured": []}, "measured has no rank"),
    "no rank predicted": (lambda content: content | {"predicted": []}, "predicted has no rank"),
    "fewer predicted": (
        lambda content: content | {"predicted": content["predicted"][:1]},
        "3 ranks were measured, but 1 predicted",
    ),
    "ranks that are none": (lambda content: content | {"measured": {"0": {}}}, "measured: {'0': {}} is not"),
    "a rank that is none": (lambda content: content | {"measured": [1, 2, 3]}, "measured: 1 is not of type"),
    "a rank of nothing": (
        lambda content: content | {"measured": [{}] * 3},
        "measured, rank 0, actions: None",
    ),
}


def rank_with(actions: list[Any], all_reduces: list[Any]) -> Callable[[Content], Any]:
    return lambda content: content | {"measured": [{"actions": actions, "all_reduces": all_reduces}] * 3}


BROKEN |= {
    "an action that is none": (rank_with([["Q0.0", 1, 2, 3]], []), "'Q' is not a valid Kind"),
    "an action that is a number": (rank_with([[5, 1, 2, 3]], []), "expected string"),
    "times that are texts": (rank_with([["F0.0", "1", 2, 3]], []), "rank 0, F0.0: '1' is not a number"),
    "times that are not numbers": (rank_with([["F0.0", 1, math.nan, 3]], []), "F0.0: nan is not a number"),
    "a time too few": (rank_with([["F0.0", 1, 2]], []), "missing 1 required"),
    "a time too many": (rank_with([["F0.0", 1, 2, 3, 4]], []), "positional arguments"),
    "bytes": (rank_with([], [["block.0", 1.5, 0, 1]]), "all-reduce block.0: 1.5 is not of type int"),
    "a layer without a name": (rank_with([], [[None, 8, 0, 1]]), "None is not of type str"),
    "an all-reduce's time": (rank_with([], [["a", 8, 0, None]]), "all-reduce a: None is not a number"),
    "an all-reduce cut off": (rank_with([], [["a", 8]]), "missing 2 required"),
}


@pytest.mark.parametrize(("broken", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_reported(tmp_path: Path, broken: Callable[[Content], Any], message: str) -> None:
    path = tmp_path / "timeline.json"
    step().save(path)
    path.write_text(json.dumps(broken(json.loads(path.read_text()))))
    with pytest.raises(UserError) as error:
        StepTimeline.load(path)
    assert str(error.value).startswith(f"{path} is not a step's timeline: ")
    assert message in str(error.value)


@pytest.mark.parametrize(
    "content", [b'{"title": "gpt"', b"\xff\xfe", b""], ids=["cut off", "no text", "empty"]
)
def test_invalid_json_is_reported(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "timeline.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match="is not a step's timeline"):
        StepTimeline.load(path)
