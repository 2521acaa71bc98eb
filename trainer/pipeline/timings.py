"""What the actions of a step took, on one rank: the one source of the bubble, traces and calibration."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from trainer.distributed.waiting import WaitMeter
from trainer.schedule.actions import Action
from trainer.schedule.timeline import ActionTimes, AllReduce, RankTimeline


@dataclass
class StepTimings:
    """The actions of one step and their times, in the order in which they were done.

    Attributes:
        actions: The actions of this rank.
        times: Those of the actions, one each.
        all_reduces: Those that the step started, in the order in which they were done.
        begin: When the step began, in seconds of `time.perf_counter`.
        end: When it was over.
    """

    actions: Sequence[Action] = ()
    times: list[ActionTimes] = field(default_factory=list)
    all_reduces: list[AllReduce] = field(default_factory=list)
    begin: float = 0.0
    end: float = 0.0

    @property
    def seconds(self) -> float:
        """Return how long the step took."""
        return self.end - self.begin

    @property
    def timeline(self) -> RankTimeline:
        """Return the same, on this rank's clock."""
        return RankTimeline(tuple(self.actions), tuple(self.times), tuple(self.all_reduces))

    @contextmanager
    def updating(self, meter: WaitMeter) -> Iterator[None]:
        """Time the update, which the train step does after the engine, as part of the list's last UPDATE."""
        waited = meter.seconds
        yield
        step = self.times[-1]
        self.times[-1] = step._replace(ready=step.ready + meter.seconds - waited, end=time.perf_counter())
