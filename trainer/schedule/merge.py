"""One list for a rank that drives several workers (devices), from the list of each."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

from trainer.layout import Layout
from trainer.schedule.actions import Action, Kind, Schedule
from trainer.schedule.replay import SEND_OF, causal_order
from trainer.schedule.simulate import simulate

# What waits for other replicas would hold up the rank's other workers: it comes after all that they compute,
# and STEP, which waits for the whole group, comes last.
PHASES = {Kind.FINISH: 1, Kind.SEND_TIED: 1, Kind.RECEIVE_TIED: 1, Kind.STEP: 2}


def by_rank(schedule: Schedule, layout: Layout) -> Schedule:
    """Return the schedule with a list for every rank of the group, rather than for every worker.

    Raises:
        ScheduleError: The schedule deadlocks.
    """
    if layout.devices_per_rank == 1:
        return schedule
    return replace(
        schedule,
        placement=tuple(map(layout.group_rank_of, range(schedule.stages))),
        workers=tuple(
            merge_for_rank(schedule, layout.workers_of(rank)) for rank in range(layout.ranks_per_group)
        ),
    )


def merge_for_rank(schedule: Schedule, workers: Sequence[int]) -> tuple[Action, ...]:
    """Return the lists of some workers as one, in which every receive follows what it waits for.

    The actions are sorted by the time at which they would happen if every worker ran on its own and a
    backward took twice as long as a forward, so that work handed to one device overlaps with the next one's.
    Every rank's list is a part of one order of the whole schedule, so ranks do not deadlock either.

    Args:
        schedule: Of the whole group.
        workers: The workers that the rank drives.

    Raises:
        ScheduleError: The schedule deadlocks.
    """
    timeline = simulate(schedule, [1.0] * schedule.stages, [2.0] * schedule.stages)
    phases = [
        tuple(accumulate((PHASES.get(action.kind, 0) for action in actions), max))
        for actions in schedule.workers
    ]
    keys = []
    averages: dict[int, tuple[tuple[float, int], Action]] = {}
    for number, (_, worker, index) in enumerate(causal_order([schedule])):
        if worker in workers:
            action = schedule.workers[worker][index]
            # A receive holds up the rank until its message is there; anything else starts at once.
            times = timeline.ends if action.kind in SEND_OF else timeline.starts
            if action.kind is Kind.AVERAGE:
                averages[action.stage] = (times[worker][index], number), action
            else:
                keys.append((phases[worker][index], times[worker][index], number, 0, action))
    # The last stage first, whatever the times: replicas with more micro-batches and those with fewer must
    # average in the same order.
    latest: tuple[float, int] = 0.0, 0
    for stage in sorted(averages, reverse=True):
        when, action = averages[stage]
        latest = max(latest, when)
        keys.append((0, *latest, -stage, action))
    keys.sort(key=lambda key: key[:4])
    return tuple(key[4] for key in keys)
