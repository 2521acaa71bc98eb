"""Who stands still because of whom. Pure: plain values in, plain values out.

A rank that waits is followed to those that it waits for, and these to theirs. While any of them makes
progress, nothing is wrong. If none does, the ranks at the end of the chains are the cause: they wait for
nobody. If there is no end, they wait for one another.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

from trainer.distributed.heartbeat import Phase, Waits
from trainer.distributed.layout import Layout
from trainer.schedule.actions import RECEIVES, Kind
from trainer.watch.seen import CUT, GONE, SILENT, UNKNOWN, Seen

STOPPED = "T"
_ENDS = (STOPPED, GONE, SILENT, CUT, UNKNOWN)  # such a rank is a cause, whatever it does
_SOONEST = 6.0  # seconds until a host that cannot be reached is given up; it is asked after 3
# A start, a download or a write to a slow file system may take long without computing; it is reported, and
# ended this many times later.
_PATIENCE = 10.0


@dataclass(frozen=True)
class Limits:
    """How long a rank may stand still.

    Attributes:
        still: Seconds without computing.
        busy: Seconds that one action may compute.
    """

    still: float
    busy: float


@dataclass(frozen=True)
class Verdict:
    """Why ranks stand still.

    Attributes:
        causes: The ranks that the others wait for; all of them, if they wait for one another.
        circle: Whether they wait for one another.
        over: Whether that has lasted too long; if not, it is to be reported all the same.
        seconds: How long they have stood still, at least.
    """

    causes: tuple[int, ...]
    circle: bool
    over: bool
    seconds: float


def judge(
    ranks: Mapping[int, Seen], mine: Sequence[int], limits: Limits, layout: Layout | None, world: int
) -> Verdict | None:
    """Return why ranks of this node stand still, or None: they do not, or what they wait for does not.

    Args:
        ranks: What is known of every rank.
        mine: The ranks of this node.
        limits: How long they may.
        layout: Who holds what; None before that is known.
        world: The number of ranks.
    """
    found = None
    for rank in mine:
        verdict = _judge(rank, ranks, limits, layout, world)
        if verdict is not None and (found is None or verdict.over > found.over):
            found = verdict
    return found


def _judge(
    start: int, ranks: Mapping[int, Seen], limits: Limits, layout: Layout | None, world: int
) -> Verdict | None:
    chain, ends, open_ = [start], [], [start]
    while open_:
        seen = ranks.get(open_.pop())
        if seen is None:
            continue
        following = [] if seen.state in _ENDS else waits_for(seen, ranks, layout, world)
        if not following:
            ends.append(seen)
        for rank in following:
            if rank not in chain:
                chain.append(rank)
                open_.append(rank)
    known = [ranks[rank] for rank in chain if rank in ranks]
    if any(seen.debugged or seen.state == "t" for seen in known):
        return None
    seconds = min((seen.still for seen in known), default=0.0)
    circle = not ends
    causes = ends or known
    limit = max(_limit(seen, limits) for seen in causes)
    if limit == inf or seconds < min(limits.still, limit):
        return None
    return Verdict(tuple(sorted(seen.rank for seen in causes)), circle, seconds >= limit, seconds)


def _limit(seen: Seen, limits: Limits) -> float:
    """Return how long others may wait for this rank."""
    if seen.state == CUT:
        return min(_SOONEST, limits.still)
    if seen.state == UNKNOWN:
        return max(limits.busy, limits.still)
    if seen.state in _ENDS:
        return limits.still
    in_schedule = seen.number > 0 or seen.phase in (Phase.TRAIN, Phase.UPDATE)
    if seen.phase is Phase.IDLE and not in_schedule:
        return inf
    if seen.busy and seen.phase is not Phase.MPI:  # which polls
        return max(limits.busy, limits.still) if in_schedule else inf
    return limits.still if in_schedule else _PATIENCE * limits.still


def waits_for(seen: Seen, ranks: Mapping[int, Seen], layout: Layout | None, world: int) -> list[int]:
    """Return the ranks that a rank waits for; empty if it is at work itself."""
    found: list[int] = []
    if seen.waits is Waits.RANK:
        found = [seen.peer]
    elif seen.waits is Waits.SENDS:
        found = [] if layout is None else _members(Waits.PIPELINE, seen.rank, layout, world)
    elif seen.waits is not Waits.NOBODY:
        found = _missing(seen, ranks, _members(seen.waits, seen.rank, layout, world))
    elif seen.phase is Phase.MPI and not seen.number:
        found = [rank for rank in range(world) if rank in ranks and ranks[rank].phase is Phase.START]
    elif seen.action is not None and layout is not None:
        if seen.action.kind in RECEIVES:
            found = [layout.rank_of(seen.action.peer, layout.replica(seen.rank))]
        elif seen.action.kind is Kind.REDUCE_WAIT:
            found = _not_averaging(seen, ranks, _members(Waits.REPLICAS, seen.rank, layout, world))
    return [rank for rank in found if rank != seen.rank]


def _members(group: Waits, rank: int, layout: Layout | None, world: int) -> list[int]:
    if group is Waits.WORLD or layout is None:
        return list(range(world))
    if group is Waits.PIPELINE:
        return list(layout.ranks_of_group(layout.replica(rank)))
    position = layout.group_rank(rank)
    return [each for each in range(world) if layout.group_rank(each) == position]


def _missing(seen: Seen, ranks: Mapping[int, Seen], members: Sequence[int]) -> list[int]:
    """Return those of a group that have not joined its call yet; all others if all have."""
    place = seen.waits - 1
    others = [rank for rank in members if rank != seen.rank]
    late = [
        rank
        for rank in others
        if rank not in ranks or ranks[rank].state in _ENDS or ranks[rank].joined[place] < seen.joined[place]
    ]
    return late or others


def _not_averaging(seen: Seen, ranks: Mapping[int, Seen], members: Sequence[int]) -> list[int]:
    """Return the replicas that have not come to average the same gradients; all others if all have."""
    others = [rank for rank in members if rank != seen.rank]
    late = [rank for rank in others if rank not in ranks or not _averages(ranks[rank], seen)]
    return late or others


def _averages(other: Seen, seen: Seen) -> bool:
    if other.state in _ENDS or other.step < seen.step:
        return False
    action = other.action
    before = other.phase in (Phase.READ, Phase.TRAIN) or other.number > 0
    return other.step > seen.step or not before or (action is not None and action.kind is Kind.REDUCE_WAIT)
