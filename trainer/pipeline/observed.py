"""What the actions of a step took, on one rank: the one source of the bubble, traces and calibration."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from trainer.schedule.actions import Action


class Times(NamedTuple):
    """When one action happened, in seconds of `time.perf_counter`.

    Attributes:
        start: The rank came to it.
        ready: What it waits for was there.
        end: It was done. On a GPU: it was handed over, for the host runs ahead of the device.
    """

    start: float
    ready: float
    end: float


@dataclass
class Observed:
    """The actions of one step and their times, in the order in which they were done."""

    actions: Sequence[Action] = ()
    times: list[Times] = field(default_factory=list)

    @property
    def waited(self) -> float:
        """Return the seconds in which the rank waited for others."""
        return sum(times.ready - times.start for times in self.times)
