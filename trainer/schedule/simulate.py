"""Predicts when every action of a schedule starts and ends, from the very list that runs.

`replay` says what waits for what, and a `Machine` how long things take:

    message     leaves when its send is done and the link is free; arrives after latency + bytes / bandwidth
    all-reduce  starts when a layer's last gradient is complete on every replica, the rank's previous one is
                done, and a cycle has passed; takes along every layer that is complete by then; overlaps with
                whatever the rank does
    UPDATE        needs all ranks of the replica to reach it, and an exchange of their norms
"""

import gc
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from trainer.schedule.actions import COMPLETES_WEIGHT_GRADIENT, Action, Kind, Schedule
from trainer.schedule.machine import Link, Machine, Network
from trainer.schedule.replay import Place, Wiring
from trainer.schedule.timeline import AllReduce, Timeline


def simulate(
    schedule: Schedule, forward: Sequence[float], backward: Sequence[float], message: float = 0.0
) -> Timeline:
    """Return when the actions of one replica happen if nothing else takes time.

    Args:
        schedule: What the workers do.
        forward: The time of a forward, by stage.
        backward: The time of a whole backward, by stage; each part of a split one takes half of it.
        message: The time that a message travels; neither end works meanwhile.

    Raises:
        ScheduleError: The schedule deadlocks.
    """
    half = [seconds / 2 for seconds in backward]
    work = {
        Kind.FORWARD: forward,
        Kind.BACKWARD: backward,
        Kind.BACKWARD_INPUT: half,
        Kind.BACKWARD_WEIGHT: half,
    }
    return simulate_on(Machine(work, network=Network(inside=Link(latency=message))), [schedule])[0]


def simulate_on(machine: Machine, schedules: Sequence[Schedule]) -> list[Timeline]:
    """Return when the actions of every replica happen; takes O(actions of replicas that differ).

    Args:
        machine: How long everything takes.
        schedules: One for every replica, or one that stands for all of `machine.replicas`.

    Raises:
        ScheduleError: The schedules deadlock.
    """
    # Replicas with equal lists and equal links do the same at the same time.
    patterns: dict[tuple[object, ...], int] = {}
    kinds = [patterns.setdefault(_pattern(machine, *each), len(patterns)) for each in enumerate(schedules)]
    firsts = [kinds.index(kind) for kind in range(len(patterns))]
    with _no_garbage_collection():
        simulation = _Simulation(machine, [schedules[replica] for replica in firsts], firsts)
        timelines = simulation.run()
    return [timelines[kind] for kind in kinds]


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Create hundreds of thousands of tuples without searching them for cycles: a fifth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _pattern(machine: Machine, replica: int, schedule: Schedule) -> tuple[object, ...]:
    """Return a key that two replicas share if they do the same at the same time."""
    workers = len(schedule.workers)
    first, size = replica * workers, machine.network.ranks_per_node
    nodes = (
        () if size is None else tuple((first + worker) // size - first // size for worker in range(workers))
    )
    return id(schedule), nodes


class _Simulation:
    """The state of one simulation; the module's docstring has its rules."""

    def __init__(self, machine: Machine, schedules: Sequence[Schedule], replicas: Sequence[int]) -> None:
        self._machine = machine
        self._schedules = schedules
        self._replicas = replicas
        self._wiring = Wiring(schedules)
        # Only UPDATEs follow an UPDATE. They come last, when it is known when every worker reaches them.
        self._order = sorted(self._wiring.causal_order(), key=lambda place: self._kind(place) is Kind.UPDATE)
        self._given = [0.0] * len(self._wiring.givers)  # when the last giver was done
        self._free: defaultdict[tuple[int, int, int], float] = defaultdict(float)  # by the two ends of a link
        self._backward: dict[tuple[int, int], tuple[float, float]] = {}  # the last one, by replica and stage
        self._complete: defaultdict[int, dict[int, list[float]]] = defaultdict(dict)  # by stage and replica
        self._averaged: dict[int, list[float]] = {}  # by stage: when each of its buckets is averaged
        self._ring_free: defaultdict[int, float] = defaultdict(float)  # by worker
        self._exchanged: dict[int, float] = {}  # by replica: when its ranks know each other's norms

    def _kind(self, place: Place) -> Kind:
        return self._schedules[place.replica].workers[place.worker][place.position].kind

    def run(self) -> list[Timeline]:
        """Return the timeline of every replica."""
        given, work = self._given, dict(self._machine.work)
        numbers = {(replica, worker): n for n, (replica, worker, *_) in enumerate(self._wiring.lists)}
        lists = self._wiring.lists
        clocks = [0.0] * len(lists)
        starts: list[list[float]] = [[] for _ in lists]
        ends: list[list[float]] = [[] for _ in lists]
        busy: list[list[float]] = [[] for _ in lists]
        for replica, worker, position in self._order:
            number = numbers[replica, worker]
            _, _, waits, gives = lists[number]
            action = self._schedules[replica].workers[worker][position]
            kind = action.kind
            start = ready = clocks[number]
            if waits[position] >= 0:
                ready = max(start, given[waits[position]])
            if kind is Kind.UPDATE:
                ready = max(ready, self._exchange(replica, clocks))
            durations = work.get(kind)
            duration = durations[action.stage] if durations else 0.0
            clocks[number] = end = ready + duration
            if kind in COMPLETES_WEIGHT_GRADIENT:
                self._backward[replica, action.stage] = ready, end
            if gives[position] >= 0:
                moment = self._give(action, replica, worker, end)
                given[gives[position]] = max(given[gives[position]], moment)
            starts[number].append(start)
            ends[number].append(end)
            busy[number].append(duration)
        return [self._timeline(replica, starts, ends, busy) for replica in range(len(self._schedules))]

    def _give(self, action: Action, replica: int, worker: int, end: float) -> float:
        """Return when what an action gives is available."""
        if action.kind is Kind.REDUCE_START:
            return self._average(action.stage, replica, worker, end)
        if action.kind is Kind.REDUCE_WAIT:
            return end
        return self._send(action, replica, worker, end)

    def _exchange(self, replica: int, clocks: Sequence[float]) -> float:
        """Return when the ranks of a replica, which have all reached UPDATE, have exchanged their norms."""
        if replica not in self._exchanged:
            reached = [
                clock for clock, (of, *_) in zip(clocks, self._wiring.lists, strict=True) if of == replica
            ]
            self._exchanged[replica] = max(reached) + self._machine.exchange
        return self._exchanged[replica]

    def _send(self, action: Action, replica: int, worker: int, end: float) -> float:
        target = self._schedules[replica].placement[action.peer]
        if target == worker:
            return end
        machine, workers = self._machine, len(self._schedules[replica].workers)
        first = self._replicas[replica] * workers
        latency, bandwidth = machine.network.link(first + worker, first + target)
        way = replica, worker, target
        size = machine.message_bytes.get((action.kind, action.stage, action.peer), 0)
        self._free[way] = gone = max(end, self._free[way]) + size / bandwidth
        return gone + latency

    def _average(self, stage: int, replica: int, worker: int, end: float) -> float:
        """Record that a replica's gradients of a stage are complete; once all are, run the all-reduces."""
        machine = self._machine
        buckets = machine.buckets[stage] if machine.buckets else ()
        began, done = self._backward.get((replica, stage), (end, end))
        everyone = self._complete[stage]
        everyone[replica] = [
            end if bucket.share is None else began + bucket.share * (done - began) for bucket in buckets
        ]
        if len(everyone) < len(self._schedules):
            return end
        complete = [max(starts) for starts in zip(*everyone.values(), strict=True)]
        averaged = self._averaged.setdefault(stage, [])
        while len(averaged) < len(buckets):
            first = len(averaged)
            begin = max(self._ring_free[worker], complete[first]) + machine.cycle
            ready = sum(moment <= begin for moment in complete)  # they are sorted by their start
            sizes = [bucket.bytes for bucket in buckets[first:ready]]
            self._ring_free[worker] = begin + machine.all_reduce(sum(sizes))
            averaged += [self._ring_free[worker]] * len(sizes)
        return max(end, *averaged) if averaged else end

    def _timeline(self, replica: int, *columns: Sequence[Sequence[float]]) -> Timeline:
        numbers = [number for number, (of, *_) in enumerate(self._wiring.lists) if of == replica]
        starts, ends, busy = (tuple(tuple(column[number]) for number in numbers) for column in columns)
        reduces = tuple(self._all_reduces(replica, worker) for worker in range(len(numbers)))
        return Timeline(starts, ends, busy, reduces, overhead=self._machine.begin + self._machine.end)

    def _all_reduces(self, replica: int, worker: int) -> tuple[AllReduce, ...]:
        placement, buckets = self._schedules[replica].placement, self._machine.buckets
        return tuple(
            AllReduce(bucket.layer, bucket.bytes, start, end)
            for stage, ends in self._averaged.items()
            if placement[stage] == worker and buckets
            for bucket, start, end in zip(buckets[stage], self._complete[stage][replica], ends, strict=True)
        )
