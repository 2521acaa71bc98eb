"""Merges the lists of several workers (devices) into one list for the rank that drives them."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

from trainer.distributed.layout import Layout
from trainer.schedule.actions import Action, Kind, Schedule
from trainer.schedule.replay import SEND_OF, causal_order
from trainer.schedule.simulate import simulate

# Actions that wait for other replicas would hold up the rank's other workers, so they follow all computing.
# UPDATE waits for the whole group, so it comes last.
PHASES = {
    Kind.REDUCE_WAIT: 1,
    Kind.SEND_REDUCED_GRADIENT: 1,
    Kind.RECEIVE_REDUCED_GRADIENT: 1,
    Kind.UPDATE: 2,
}


def by_rank(schedule: Schedule, layout: Layout) -> Schedule:
    """Return the schedule with one list for every rank of the group instead of every worker.

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
    """Return one list for several workers, in which every receive follows what it waits for.

    It sorts actions by the time at which they would happen if every worker ran on its own and a backward
    took twice as long as a forward. So the work of one device overlaps with the next one's. Every rank's
    list is a part of one order of the whole schedule, so ranks do not deadlock either.

    Args:
        schedule: The schedule of the whole group.
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
            # A receive blocks the rank until its message arrives; anything else starts at once.
            times = timeline.ends if action.kind in SEND_OF else timeline.starts
            if action.kind is Kind.REDUCE_START:
                averages[action.stage] = (times[worker][index], number), action
            else:
                keys.append((phases[worker][index], times[worker][index], number, 0, action))
    # The last stage first, whatever the times: replicas with different numbers of micro-batches must average
    # in the same order.
    latest: tuple[float, int] = 0.0, 0
    for stage in sorted(averages, reverse=True):
        when, action = averages[stage]
        latest = max(latest, when)
        keys.append((0, *latest, -stage, action))
    keys.sort(key=lambda key: key[:4])
    return tuple(key[4] for key in keys)
