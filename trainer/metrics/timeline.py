"""One step of a model-parallel group, measured and predicted, for a Gantt chart.

When a run ends, it writes one of its last steps, of median duration, to `timeline.json`.
"""

import json
from dataclasses import dataclass, fields
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

from trainer.errors import UserError
from trainer.schedule.actions import parse_action
from trainer.schedule.timeline import ActionTimes, AllReduce, RankTimeline

_Type = TypeVar("_Type")


@dataclass(frozen=True)
class StepTimeline:
    """A step of one replica's ranks.

    Attributes:
        title: The run's headline.
        step: The number of the step that was measured.
        seconds: The measured duration of the step.
        predicted_seconds: Its predicted duration.
        measured: The observed actions, by rank of the group.
        predicted: The simulation of the lists that ran, by rank of the group.
        clock_error: The largest error of the ranks' clocks, in seconds.
    """

    title: str
    step: int
    seconds: float
    predicted_seconds: float
    measured: tuple[RankTimeline, ...]
    predicted: tuple[RankTimeline, ...]
    clock_error: float

    def save(self, path: Path) -> None:
        """Write the file."""
        content = {
            "title": self.title,
            "step": self.step,
            "seconds": self.seconds,
            "predicted_seconds": self.predicted_seconds,
            "clock_error": self.clock_error,
            "measured": [_plain(rank) for rank in self.measured],
            "predicted": [_plain(rank) for rank in self.predicted],
        }
        path.write_text(json.dumps(content) + "\n")

    @classmethod
    def load(cls, path: Path) -> "StepTimeline":
        """Read a file that `save` wrote.

        Raises:
            UserError: The file is not a step's timeline.
        """
        try:
            return _step_timeline(json.loads(path.read_text()))
        except (OSError, ValueError, TypeError, OverflowError, RecursionError) as error:
            raise UserError(f"{path} is not a step's timeline: {error}") from error


def _plain(rank: RankTimeline) -> dict[str, Any]:
    actions = [[str(action), *times] for action, times in zip(rank.actions, rank.times, strict=True)]
    return {"actions": actions, "all_reduces": [list(reduce) for reduce in rank.all_reduces]}


def _step_timeline(content: Any) -> StepTimeline:
    names = {field.name for field in fields(StepTimeline)}
    if not isinstance(content, dict) or content.keys() != names:
        raise ValueError(f"it must be an object with {', '.join(sorted(names))}")
    measured, predicted = (_ranks(content, name) for name in ("measured", "predicted"))
    if len(measured) != len(predicted):
        raise ValueError(f"{len(measured)} ranks were measured, but {len(predicted)} predicted")
    return StepTimeline(
        title=_of_type(str, content["title"], "title"),
        step=_of_type(int, content["step"], "step"),
        seconds=_number(content["seconds"], "seconds"),
        predicted_seconds=_number(content["predicted_seconds"], "predicted_seconds"),
        measured=measured,
        predicted=predicted,
        clock_error=_number(content["clock_error"], "clock_error"),
    )


def _ranks(content: dict[str, Any], name: str) -> tuple[RankTimeline, ...]:
    ranks = _of_type(list, content[name], name)
    if not ranks:
        raise ValueError(f"{name} has no rank")
    return tuple(_rank(_of_type(dict, rank, name), f"{name}, rank {i}") for i, rank in enumerate(ranks))


def _rank(content: dict[str, Any], name: str) -> RankTimeline:
    actions = _of_type(list, content.get("actions"), f"{name}, actions")
    reduces = _of_type(list, content.get("all_reduces"), f"{name}, all_reduces")
    return RankTimeline(
        actions=tuple(parse_action(action) for action, *_ in actions),
        times=tuple(
            ActionTimes(*(_number(each, f"{name}, {action}") for each in times)) for action, *times in actions
        ),
        all_reduces=tuple(_all_reduce(name, *reduce) for reduce in reduces),
    )


def _all_reduce(name: str, layer: Any, size: Any, start: Any, end: Any) -> AllReduce:
    what = f"{name}, all-reduce {layer}"
    return AllReduce(
        _of_type(str, layer, what), _of_type(int, size, what), _number(start, what), _number(end, what)
    )


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise ValueError(f"{what}: {value!r} is not a number of seconds")
    return float(value)


def _of_type(kind: type[_Type], value: Any, what: str) -> _Type:
    if isinstance(value, bool) or not isinstance(value, kind):
        raise TypeError(f"{what}: {value!r} is not of type {kind.__name__}")
    return value
