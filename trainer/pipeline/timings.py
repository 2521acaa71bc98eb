"""The times of one rank's actions in a step, from which bubbles, traces and calibration are derived."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from trainer.distributed.waiting import WaitMeter
from trainer.schedule.actions import Action
from trainer.schedule.timeline import ActionTimes, AllReduce, RankTimeline


@dataclass
class StepTimings:
    """The actions of one step and their times, in the order of execution.

    Attributes:
        actions: The actions of this rank.
        times: One entry for each action.
        all_reduces: The all-reduces that the step started, in the order in which they completed.
        begin: When the step began, in seconds of `time.perf_counter`.
        end: When it ended.
    """

    actions: Sequence[Action] = ()
    times: list[ActionTimes] = field(default_factory=list)
    all_reduces: list[AllReduce] = field(default_factory=list)
    begin: float = 0.0
    end: float = 0.0

    @property
    def seconds(self) -> float:
        """Return the duration of the step in seconds."""
        return self.end - self.begin

    @property
    def timeline(self) -> RankTimeline:
        """Return an immutable copy, on this rank's clock."""
        return RankTimeline(tuple(self.actions), tuple(self.times), tuple(self.all_reduces))

    @contextmanager
    def updating(self, meter: WaitMeter) -> Iterator[None]:
        """Add the time of this context, in which the train step updates, to the last UPDATE of the list."""
        waited = meter.seconds
        yield
        step = self.times[-1]
        self.times[-1] = step._replace(ready=step.ready + meter.seconds - waited, end=time.perf_counter())
