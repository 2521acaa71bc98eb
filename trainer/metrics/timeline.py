"""One step of a model-parallel group, as it was and as it was predicted: what a Gantt chart shows.

A run writes one of its last steps, which took a usual time, to `timeline.json` when it ends.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import UserError
from trainer.schedule.actions import parse_action
from trainer.schedule.timeline import AllReduce, RankTimeline, Times


@dataclass(frozen=True)
class StepTimeline:
    """A step of one replica's ranks.

    Attributes:
        title: What ran, in a line.
        step: The number of the step that was measured.
        seconds: How long the step was measured to take, from its begin to its end.
        predicted_seconds: The same as predicted.
        measured: By rank of the group, what was observed.
        predicted: By rank of the group, the simulation of the very same lists.
        clock_error: How far a rank's times may be off another's, in seconds.
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
        """Read what `save` wrote.

        Raises:
            UserError: The file is not one.
        """
        try:
            content = json.loads(path.read_text())
            for name in ("measured", "predicted"):
                content[name] = tuple(_rank(rank) for rank in content[name])
            return cls(**content)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is not a step's timeline: {error}") from error


def _plain(rank: RankTimeline) -> dict[str, Any]:
    actions = [[str(action), *times] for action, times in zip(rank.actions, rank.times, strict=True)]
    return {"actions": actions, "all_reduces": [list(reduce) for reduce in rank.all_reduces]}


def _rank(content: dict[str, Any]) -> RankTimeline:
    return RankTimeline(
        actions=tuple(parse_action(name) for name, *_ in content["actions"]),
        times=tuple(Times(*times) for _, *times in content["actions"]),
        all_reduces=tuple(AllReduce(*reduce) for reduce in content["all_reduces"]),
    )
