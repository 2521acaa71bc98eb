"""Predicts when every action of a schedule starts and ends, from the very list that runs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trainer.schedule.actions import Action, Kind, Schedule
from trainer.schedule.replay import SEND_OF, Message, causal_order, message_of


@dataclass(frozen=True)
class Timeline:
    """When the actions happen, in the unit of the times that it was simulated with.

    Attributes:
        starts: By worker, in the order of its list: when the worker comes to the action.
        ends: By worker, in the order of its list: when it goes on. A receive ends when the message is there.
        busy: By worker, in the order of its list: how much of that it works, rather than waits.
    """

    starts: tuple[tuple[float, ...], ...]
    ends: tuple[tuple[float, ...], ...]
    busy: tuple[tuple[float, ...], ...]

    @property
    def makespan(self) -> float:
        """Return when the last worker is done."""
        return max((ends[-1] for ends in self.ends if ends), default=0.0)

    @property
    def bubble(self) -> float:
        """Return the share of workers x makespan in which workers wait; 0 if nothing takes any time."""
        total = len(self.ends) * self.makespan
        return 1 - sum(map(sum, self.busy)) / total if total else 0.0


def simulate(
    schedule: Schedule, forward: Sequence[float], backward: Sequence[float], message: float = 0.0
) -> Timeline:
    """Return when the actions of one replica happen; takes O(actions).

    Args:
        schedule: What is done.
        forward: How long a forward of each stage takes.
        backward: How long a backward of each stage takes.
        message: How long a message travels; neither end works meanwhile.

    Raises:
        ScheduleError: The schedule deadlocks.
    """
    times = {Kind.FORWARD: forward, Kind.BACKWARD: backward}

    def work(action: Action) -> float:
        return times[action.kind][action.stage] if action.kind in times else 0.0

    return simulate_with(schedule, work, lambda _: message)


def simulate_with(
    schedule: Schedule, work: Callable[[Action], float], travel: Callable[[Message], float]
) -> Timeline:
    """Return when the actions of one replica happen, with times of any kind.

    Args:
        schedule: What is done.
        work: How long an action keeps its worker.
        travel: How long a message is under way once it is sent.

    Raises:
        ScheduleError: The schedule deadlocks.
    """
    clocks = [0.0] * len(schedule.workers)
    starts: list[list[float]] = [[] for _ in schedule.workers]
    ends: list[list[float]] = [[] for _ in schedule.workers]
    busy: list[list[float]] = [[] for _ in schedule.workers]
    arrivals: dict[Message, float] = {}
    finished = 0.0  # when the last stage's gradients are averaged; every STEP waits for it
    for _, worker, index in causal_order([schedule]):
        action = schedule.workers[worker][index]
        start = ready = clocks[worker]
        message = message_of(action)
        if action.kind is Kind.STEP:
            ready = max(start, finished)
        elif message is not None and action.kind in SEND_OF:
            ready = max(start, arrivals[message])
        duration = work(action)
        clocks[worker] = end = ready + duration
        if action.kind is Kind.FINISH:
            finished = max(finished, end)
        elif message is not None and action.kind not in SEND_OF:
            arrivals[message] = end + travel(message)
        starts[worker].append(start)
        ends[worker].append(end)
        busy[worker].append(duration)
    return Timeline(*(tuple(map(tuple, lists)) for lists in (starts, ends, busy)))
