"""Learns how long things take on a machine, from steps that were observed on it.

work      how long an action kept its worker busy: the mean within a step, the median over steps
links     how long messages travelled, as a function of their bytes; only those that a rank waited for, and
          that had their link to themselves
ring      how long all-reduces took once every replica had joined, as a function of their bytes
buckets   how much of the stage's last backward was done when an all-reduce started
"""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import inf

from trainer.schedule.actions import COMPLETES_WEIGHT_GRADIENT, SENDS, Kind
from trainer.schedule.machine import Bucket, Link, Machine, Network
from trainer.schedule.replay import SEND_OF, message_of
from trainer.schedule.timeline import ActionTimes, RankTimeline

_LOOKING = 5e-4  # seconds; a receive that waits less may have found its message there, on a busy core
_SAME = 1e-4  # seconds; all-reduces whose ends are closer than this were seen at one check
_ROUNDING = 1e-6  # share of a backward
_SPREAD = 1.5  # sizes within this factor of each other cannot separate latency from bandwidth

Channel = tuple[Kind, int, int]  # the sending end's kind, source stage, target stage
Point = tuple[int, float]  # bytes, seconds


@dataclass(frozen=True)
class RankObservation:
    """What one rank observed, and sends to the others of its group.

    Attributes:
        work: Seconds of an action, by kind and stage.
        begin: Seconds before a step's first action.
        end: Seconds after its last action.
        step: One typical step, the same on all ranks, all on one clock.
        clock_error: How far this rank's clock may be off the first rank's, in seconds.
        sizes: Bytes of the messages that it sends, by channel.
        reduced: Bytes and seconds of all-reduces: see `reduce_points`.
        buckets: What its stages average, by stage.
    """

    work: Mapping[tuple[Kind, int], float]
    begin: float
    end: float
    step: RankTimeline
    clock_error: float = 0.0
    sizes: Mapping[Channel, int] = field(default_factory=dict)
    reduced: Sequence[Point] = ()
    buckets: Mapping[int, Sequence[Bucket]] = field(default_factory=dict)


def calibrate(
    ranks: Sequence[RankObservation],
    stages: int,
    *,
    replicas: int = 1,
    first: int = 0,
    ranks_per_node: int | None = None,
) -> Machine:
    """Return the machine that the observations of a group's ranks describe.

    Args:
        ranks: What each rank of one group observed.
        stages: The number of stages.
        replicas: The number of groups.
        first: The world's number of the group's first rank.
        ranks_per_node: The number of ranks on a node; None: all of them.
    """
    work: dict[Kind, list[float]] = defaultdict(lambda: [0.0] * stages)
    buckets: list[Sequence[Bucket]] = [()] * stages
    sizes: dict[Channel, int] = {}
    for rank in ranks:
        for (kind, stage), seconds in rank.work.items():
            work[kind][stage] = seconds
        for stage, of_stage in rank.buckets.items():
            buckets[stage] = of_stage
        sizes |= rank.sizes
    network = Network(ranks_per_node=ranks_per_node)
    inside, between = _travels([rank.step for rank in ranks], sizes, network, first)
    cycle, bandwidth = fit_link([point for rank in ranks for point in rank.reduced])
    return Machine(
        work=dict(work),
        message_bytes=sizes,
        network=Network(fit_link(inside), fit_link(between or inside), ranks_per_node),
        buckets=buckets if any(buckets) else (),
        ring=Link(bandwidth=bandwidth * 2 * (replicas - 1) / replicas if replicas > 1 else inf),
        cycle=cycle,
        replicas=replicas,
        exchange=min((_waited_in_step(rank.step) for rank in ranks), default=0.0),
        begin=statistics.fmean(rank.begin for rank in ranks),
        end=statistics.fmean(rank.end for rank in ranks),
    )


def work_times(steps: Iterable[RankTimeline]) -> dict[tuple[Kind, int], float]:
    """Return the seconds that an action keeps a rank busy, by kind and stage.

    The mean within a step preserves its total; the median over steps drops outliers.
    """
    means: dict[tuple[Kind, int], list[float]] = defaultdict(list)
    for step in steps:
        durations: dict[tuple[Kind, int], list[float]] = defaultdict(list)
        for action, times in zip(step.actions, step.times, strict=True):
            durations[action.kind, action.stage].append(times.end - times.ready)
        for key, seconds in durations.items():
            means[key].append(statistics.fmean(seconds))
    return {key: statistics.median(seconds) for key, seconds in means.items()}


def stage_buckets(step: RankTimeline, stage_of: Mapping[str, int]) -> dict[int, list[Bucket]]:
    """Return what a rank averages, by stage.

    Args:
        step: A step of the rank.
        stage_of: The stage of every layer, by the layer's name.
    """
    last_backward = {
        action.stage: times
        for action, times in zip(step.actions, step.times, strict=True)
        if action.kind in COMPLETES_WEIGHT_GRADIENT
    }
    buckets: dict[int, list[Bucket]] = defaultdict(list)
    for reduce in sorted(step.all_reduces, key=lambda reduce: reduce.start):
        stage = stage_of[reduce.layer]
        share = _share(reduce.start, last_backward[stage])
        buckets[stage].append(Bucket(reduce.layer, reduce.bytes, share))
    return dict(buckets)


def _share(moment: float, backward: ActionTimes) -> float | None:
    """Return the share of a backward that was done at a moment; None after its end."""
    length = backward.end - backward.ready
    if moment > backward.end + _ROUNDING * length:
        return None
    return min((moment - backward.ready) / length, 1.0) if length else 1.0


def reduce_points(step: RankTimeline, seconds: Sequence[float]) -> list[Point]:
    """Return bytes and seconds of what a rank's ring did at once.

    All-reduces that were seen to end at one check count as one: Horovod fuses what is complete in a cycle.

    Args:
        step: A step of the rank.
        seconds: The shortest time of each of its all-reduces on any replica: the last replica to join does
            not wait.
    """
    points: list[Point] = []
    begin = seen = -inf
    for reduce, took in zip(step.all_reduces, seconds, strict=True):
        size = reduce.bytes
        if reduce.end - seen > _SAME:
            begin = max(seen, reduce.end - took)
        else:  # it was fused with the previous one
            size += points.pop()[0]
        seen = reduce.end
        points.append((size, seen - begin))
    return points


def fit_link(points: Sequence[Point]) -> Link:
    """Return the link that fits the points: seconds = latency + bytes / bandwidth.

    It takes medians for each size, of the slopes between sizes, and of the residuals (Theil, 1950; Sen,
    1968), so that outliers do not bend the line. If all sizes are similar, it attributes all seconds to the
    bytes. That predicts these sizes, and how such messages queue, but no other sizes.
    """
    points = [(size, max(seconds, 0.0)) for size, seconds in points]
    slopes = _slopes(points)
    slope = _median(slopes)
    latency = _median(seconds - slope * size for size, seconds in points)
    if slope > 0 and latency >= 0:
        return Link(latency, 1 / slope)
    a_byte = _median(seconds / size for size, seconds in points if size)
    if (slopes and slope <= 0) or not a_byte:  # larger messages take no longer
        return Link(_median(seconds for _, seconds in points))
    return Link(bandwidth=1 / a_byte)


def _slopes(points: Sequence[Point]) -> list[float]:
    """Return the seconds per byte between any two sizes that differ enough."""
    by_size: dict[int, list[float]] = defaultdict(list)
    for size, seconds in points:
        by_size[size].append(seconds)
    return [
        (_median(by_size[large]) - _median(by_size[small])) / (large - small)
        for small, large in combinations(sorted(by_size), 2)
        if large > _SPREAD * small
    ]


def _median(numbers: Iterable[float]) -> float:
    return statistics.median([*numbers] or [0.0])


def _travels(
    ranks: Sequence[RankTimeline], sizes: Mapping[Channel, int], network: Network, first: int
) -> tuple[list[Point], list[Point]]:
    """Return bytes and seconds of messages whose arrival was observed, inside nodes and between them.

    It skips a message that was sent before its receiver began to wait and was there at once: it may have
    arrived long before. It also skips a message that was sent before the previous one on its link had been
    received: it may have queued after that one.
    """
    taken = {
        message_of(action): (number, times)
        for number, rank in enumerate(ranks)
        for action, times in zip(rank.actions, rank.times, strict=True)
        if action.kind in SEND_OF
    }
    inside: list[Point] = []
    between: list[Point] = []
    for source, rank in enumerate(ranks):
        free: dict[int, float] = {}  # by target: the latest time at which the previous message arrived
        for action, times in zip(rank.actions, rank.times, strict=True):
            message = message_of(action) if action.kind in SENDS else None
            if message is None or message not in taken:
                continue
            target, there = taken[message]
            alone = free.get(target, -inf) <= times.end
            free[target] = there.ready
            seen = there.start <= times.end or there.ready - there.start >= _LOOKING
            if target != source and alone and seen:
                point = sizes.get((message.kind, message.source, message.target), 0), there.ready - times.end
                (between if network.crosses(first + source, first + target) else inside).append(point)
    return inside, between


def _waited_in_step(step: RankTimeline) -> float:
    """Return how long a rank waited for others' norms and weights; the last to arrive waits for no norms."""
    return sum(
        times.ready - times.start
        for action, times in zip(step.actions, step.times, strict=True)
        if action.kind is Kind.UPDATE
    )
