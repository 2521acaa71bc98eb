"""When the actions of a step happen; the same types for measured and for simulated steps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from trainer.schedule.actions import Action, Schedule


class ActionTimes(NamedTuple):
    """When one action happened, in seconds; if it was observed, on the clock of `time.perf_counter`.

    Attributes:
        start: When the rank reached it.
        ready: When what it waits for was there.
        end: When it was done. On a GPU: when it was queued, because the host runs ahead of the device.
    """

    start: float
    ready: float
    end: float


class AllReduce(NamedTuple):
    """One all-reduce over the replicas, of a layer's gradients.

    Attributes:
        layer: The layer's name.
        bytes: The size of what is sent, after compression.
        start: When this rank handed it to Horovod, in seconds.
        end: When it was done; if observed, when this rank first saw that: it checks after every layer.
    """

    layer: str
    bytes: int
    start: float
    end: float


@dataclass(frozen=True)
class RankTimeline:
    """What one rank did in a step; times are seconds since the step began, on one clock for all ranks.

    Attributes:
        actions: Its list of actions.
        times: The times of each action.
        all_reduces: Of its layers' gradients; they overlap with the actions.
    """

    actions: tuple[Action, ...]
    times: tuple[ActionTimes, ...]
    all_reduces: tuple[AllReduce, ...] = ()

    @property
    def waited(self) -> float:
        """Return the seconds that the rank waited for others."""
        return sum(times.ready - times.start for times in self.times)

    def on(self, clock: Callable[[float], float]) -> "RankTimeline":
        """Return the same with all times converted to another clock."""
        times = (ActionTimes(*map(clock, each)) for each in self.times)
        reduces = (each._replace(start=clock(each.start), end=clock(each.end)) for each in self.all_reduces)
        return RankTimeline(self.actions, tuple(times), tuple(reduces))


@dataclass(frozen=True)
class Timeline:
    """When the actions of a replica happen, in the time unit of the simulation.

    Attributes:
        starts: By worker and action: when the worker reaches the action.
        ends: By worker and action: when the worker goes on. A receive ends when the message is there.
        busy: By worker and action: the time in which the worker works rather than waits.
        all_reduces: By worker, in the order in which they start.
        overhead: The time of a step before its first and after its last action.
    """

    starts: tuple[tuple[float, ...], ...]
    ends: tuple[tuple[float, ...], ...]
    busy: tuple[tuple[float, ...], ...]
    all_reduces: tuple[tuple[AllReduce, ...], ...] = ()
    overhead: float = 0.0

    @property
    def makespan(self) -> float:
        """Return when the last worker finishes its last action."""
        return max((ends[-1] for ends in self.ends if ends), default=0.0)

    @property
    def seconds(self) -> float:
        """Return the time of the whole step."""
        return self.makespan + self.overhead

    @property
    def bubble(self) -> float:
        """Return the share of (workers x step time) in which workers wait; 0 if nothing takes any time."""
        total = len(self.ends) * self.makespan
        idle = total - sum(map(sum, self.busy))
        return idle / (total + len(self.ends) * self.overhead) if total else 0.0

    def by_rank(self, schedule: Schedule, begin: float = 0.0) -> tuple[RankTimeline, ...]:
        """Return the same for every rank, shifted to start at `begin`."""
        return tuple(
            RankTimeline(
                actions,
                tuple(ActionTimes(start, end - busy, end) for start, end, busy in zip(*columns, strict=True)),
                reduces,
            ).on(lambda moment: begin + moment)
            for actions, *columns, reduces in zip(
                schedule.workers, self.starts, self.ends, self.busy, self._reduces(), strict=True
            )
        )

    def _reduces(self) -> Sequence[tuple[AllReduce, ...]]:
        return self.all_reduces or [()] * len(self.ends)


def lanes(all_reduces: Sequence[AllReduce]) -> list[int]:
    """Return a lane for each, counted from 0, so that none overlaps another in the same lane."""
    free_from: list[float] = []
    chosen = []
    for reduce in all_reduces:
        lane = next((i for i, end in enumerate(free_from) if end <= reduce.start), len(free_from))
        free_from[lane:] = [reduce.end, *free_from[lane + 1 :]]
        chosen.append(lane)
    return chosen
