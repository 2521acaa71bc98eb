"""The validator, compared with an interpreter: random changes are rejected, or compute the same."""

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.schedules import training_schedule
from trainer.schedule.actions import (
    COMPLETES_WEIGHT_GRADIENT,
    MAKES_INPUT_GRADIENT,
    RECEIVE_OF,
    RECEIVES,
    SENDS,
    Action,
    Kind,
    Schedule,
    Tied,
)
from trainer.schedule.assemble import evaluation_schedule, generation_schedule
from trainer.schedule.merge import merge_for_rank
from trainer.schedule.resolve import recipes
from trainer.schedule.validate import ScheduleError, validate

Lists = list[list[Action]]


def lists_of(schedule: Schedule) -> Lists:
    return [list(actions) for actions in schedule.workers]


def with_lists(schedule: Schedule, lists: Lists) -> Schedule:
    return replace(schedule, workers=tuple(map(tuple, lists)))


class HangError(Exception):
    """The interpreter did not terminate."""


class Interpreter:
    """Runs lists on symbols instead of tensors, independently of the trainer's code.

    A channel is a queue without micro-batch tags, and averages match by their order, as in NCCL. A mistake
    results in other symbols, a missing key, a queue that is not empty, or a hang.
    """

    def __init__(self, world: Sequence[Schedule]) -> None:
        self.world = world
        self.values: dict[tuple[object, ...], object] = {}
        self.gradients: defaultdict[tuple[int, int], list[object]] = defaultdict(list)
        self.deferred: defaultdict[tuple[int, int], list[object]] = defaultdict(list)
        self.queues: defaultdict[tuple[object, ...], deque[object]] = defaultdict(deque)
        self.averages: defaultdict[tuple[int, int], list[object]] = defaultdict(list)
        self.finished: dict[tuple[int, int], int] = {}
        self.stepped: dict[tuple[int, int], object] = {}

    def run(self) -> object:
        left = {(r, w): deque(a) for r, s in enumerate(self.world) for w, a in enumerate(s.workers)}
        moved = True
        while moved:
            moved = False
            for (replica, worker), actions in left.items():
                while actions and self.act(replica, worker, actions[0]):
                    actions.popleft()
                    moved = True
        if any(left.values()):
            raise HangError
        unread = [key for key, queue in self.queues.items() if queue]
        # Omitted micro-batches and steps show in the comparison.
        return unread, self.stepped, {k: v for k, v in self.values.items() if k[1] in ("F", "S", "rk")}

    def act(self, replica: int, worker: int, action: Action) -> bool:
        """Perform an action; return False if it must wait."""
        kind, s, i = action.kind, action.stage, action.micro_batch
        if kind in RECEIVES:
            queue = self.queues[replica, kind, action.peer, s]
            if not queue:
                return False
            self.values[replica, kind.value, s, i, action.peer] = queue.popleft()
            if kind is Kind.RECEIVE_TIED_GRADIENT:
                self.gradients[replica, s].append(self.values[replica, kind.value, s, i, action.peer])
        elif kind in SENDS:
            self.queues[replica, RECEIVE_OF[kind], s, action.peer].append(self.sent(replica, action))
        elif kind is Kind.FORWARD:
            assert (replica, "F", s, i) not in self.values
            self.values[replica, "F", s, i] = ("F", s, self.input(replica, s, i))
        elif kind in MAKES_INPUT_GRADIENT | COMPLETES_WEIGHT_GRADIENT:
            self.backward(replica, action)
        elif kind is Kind.SAMPLE:
            self.values[replica, "S", s, i] = ("S", self.values[replica, "F", s, i])
        elif kind is Kind.REDUCE_START:
            self.values[replica, "A", s] = len(self.averages[replica, worker])
            complete = tuple(self.gradients[replica, s]), tuple(self.deferred[replica, s])
            self.averages[replica, worker].append(complete)
        else:
            return self.wait(replica, worker, action)
        return True

    def input(self, replica: int, s: int, i: int) -> object:
        if s > 0:
            return self.from_neighbour(replica, Action(Kind.RECEIVE_ACTIVATION, s, i, s - 1), "F")
        if self.world[replica].name == "generation" and i > 0:
            return self.values[replica, "rk", 0, i - 1, self.world[replica].stages - 1]
        return ("data", replica, i)

    def from_neighbour(self, replica: int, receive: Action, letter: str) -> object:
        """Return the received value, or the worker's own if its list has no such receive."""
        s, i, peer = receive.stage, receive.micro_batch, receive.peer
        placement = self.world[replica].placement
        if placement[s] == placement[peer] and receive not in self.world[replica].workers[placement[s]]:
            return self.values[replica, letter, peer, i]
        return self.values[replica, receive.kind.value, s, i, peer]

    def backward(self, replica: int, action: Action) -> None:
        """Run a backward or one part of it; each part adds to some of the gradients."""
        s, i = action.stage, action.micro_batch
        gradient: object = "loss"
        if action.kind in MAKES_INPUT_GRADIENT:
            if s + 1 < self.world[replica].stages:
                gradient = self.from_neighbour(replica, Action(Kind.RECEIVE_GRADIENT, s, i, s + 1), "B")
            self.values[replica, "B", s, i] = ("B", s, self.values[replica, "F", s, i], gradient)
            self.gradients[replica, s].append(self.values[replica, "B", s, i])
        if action.kind in COMPLETES_WEIGHT_GRADIENT:
            self.deferred[replica, s].append(self.values[replica, "B", s, i])

    def sent(self, replica: int, action: Action) -> object:
        letter = {Kind.SEND_ACTIVATION: "F", Kind.SEND_GRADIENT: "B", Kind.SEND_TOKEN: "S"}.get(action.kind)
        if letter is not None:
            return self.values[replica, letter, action.stage, action.micro_batch]
        s = action.stage
        if action.kind is Kind.SEND_TIED_GRADIENT:
            return "tie", tuple(self.gradients[replica, s]), tuple(self.deferred[replica, s])
        return self.values[replica, "Z", s]

    def wait(self, replica: int, worker: int, action: Action) -> bool:
        s = action.stage
        if action.kind is Kind.REDUCE_WAIT:
            turn = self.values[replica, "A", s]
            assert isinstance(turn, int)
            all_ = [self.averages[other, worker] for other in range(len(self.world))]
            if any(len(averages) <= turn for averages in all_):
                return False
            self.values[replica, "Z", s] = tuple(averages[turn] for averages in all_)
            return True
        stages = range(self.world[replica].stages)
        if any((replica, "Z", stage) not in self.values for stage in stages):
            return False
        tied = [
            self.values.get((replica, Kind.RECEIVE_REDUCED_GRADIENT.value, s, -1, peer)) for peer in stages
        ]
        self.stepped[replica, s] = (self.values[replica, "Z", s], tied)
        return True


def outcome(world: Sequence[Schedule]) -> object:
    try:
        return Interpreter(world).run()
    except (HangError, LookupError, AssertionError) as error:
        return type(error)


@cache
def training(name: str, workers: int, micro_batches: int, ties: tuple[Tied, ...]) -> Schedule:
    """Return a schedule that is searched for once, as many examples have the same."""
    return training_schedule(name, workers, micro_batches, ties)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[Schedule], list[Tied]]:
    """Return one to three replicas with one or more stages a worker, which train, evaluate or generate."""
    name = draw(st.sampled_from([*recipes(), "evaluation", "generation"]))
    devices, ranks, m = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    p = devices * ranks
    ties = draw(st.sampled_from([[], [Tied(0, p - 1)], [Tied(0, 1), Tied(0, p - 1)] if p > 2 else []]))
    local = draw(st.booleans())
    world = []
    for longer in sorted(draw(st.lists(st.booleans(), min_size=1, max_size=3)), reverse=True):
        if name == "evaluation":
            schedule = evaluation_schedule(range(p), m + longer)
        elif name == "generation":
            schedule = generation_schedule(range(p), m + longer)
        else:
            schedule = training(name, p, m + longer, tuple(ties))
        world.append(on_ranks(schedule, devices, local=local))
    return world, ties


def on_ranks(schedule: Schedule, devices: int, *, local: bool) -> Schedule:
    """Return one list a rank; with `local`, activations and gradients within a rank are not messages."""
    placement = tuple(worker // devices for worker in schedule.placement)
    nearby = (Kind.SEND_ACTIVATION, Kind.RECEIVE_ACTIVATION, Kind.SEND_GRADIENT, Kind.RECEIVE_GRADIENT)
    workers = [
        tuple(
            action
            for action in merge_for_rank(schedule, range(rank * devices, (rank + 1) * devices))
            if not (local and action.kind in nearby and placement[action.stage] == placement[action.peer])
        )
        for rank in range(len(schedule.workers) // devices)
    ]
    return replace(schedule, placement=placement, workers=tuple(workers))


def mutate(draw: st.DrawFn, lists: Lists) -> None:
    """Drop, duplicate, move or swap actions, or change one of them."""
    worker = draw(st.integers(0, len(lists) - 1))
    actions = lists[worker]
    if not actions:
        return
    k = draw(st.integers(0, len(actions) - 1))
    what = draw(st.sampled_from(["drop", "double", "move", "neighbours", "swap", "edit"]))
    if what == "drop":
        del actions[k]
    elif what == "double":
        actions.insert(draw(st.integers(0, len(actions))), actions[k])
    elif what == "move":
        action = actions.pop(k)
        actions.insert(draw(st.integers(0, len(actions))), action)
    elif what == "neighbours":
        actions[k - 1 : k + 1] = reversed(actions[k - 1 : k + 1])
    elif what == "swap":
        j = draw(st.integers(0, len(actions) - 1))
        actions[k], actions[j] = actions[j], actions[k]
    else:
        action, number = actions[k], draw(st.integers(-1, 4))
        edits = (
            replace(action, stage=number),
            replace(action, micro_batch=number),
            replace(action, peer=number),
        )
        actions[k] = draw(st.sampled_from(edits))


@st.composite
def mutated(draw: st.DrawFn) -> tuple[list[Schedule], list[Schedule], list[Tied]]:
    world, ties = draw(worlds())
    other = list(world)
    replica = draw(st.integers(0, len(world) - 1))
    lists = lists_of(world[replica])
    for _ in range(draw(st.integers(1, 3))):
        mutate(draw, lists)
    other[replica] = with_lists(world[replica], lists)
    return world, other, ties


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(mutated())
def test_accepted_schedules_compute_the_same(case: tuple[list[Schedule], list[Schedule], list[Tied]]) -> None:
    world, other, ties = case
    validate(world, ties)
    expected = outcome(world)
    assert isinstance(expected, tuple)
    try:
        validate(other, ties)
    except ScheduleError:
        return
    assert outcome(other) == expected


@st.composite
def reordered(draw: st.DrawFn) -> tuple[list[Schedule], list[Schedule], list[Tied]]:
    """Return a world, and a copy with some neighbours swapped in every list of a replica."""
    world, ties = draw(worlds())
    replica = draw(st.integers(0, len(world) - 1))
    lists = lists_of(world[replica])
    for actions in lists:
        for k in draw(st.lists(st.integers(1, max(len(actions) - 1, 1)), max_size=3)):
            actions[k - 1 : k + 1] = reversed(actions[k - 1 : k + 1])
    other = list(world)
    other[replica] = with_lists(world[replica], lists)
    return world, other, ties


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(reordered())
def test_schedules_that_would_hang_or_differ_are_rejected(
    case: tuple[list[Schedule], list[Schedule], list[Tied]],
) -> None:
    world, other, ties = case
    if outcome(other) != outcome(world):
        with pytest.raises(ScheduleError):
            validate(other, ties)
