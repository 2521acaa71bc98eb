"""The validator: each rule broken in turn, deadlocks, and random changes against an interpreter."""

from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.schedule.actions import RECEIVE_OF, RECEIVES, SENDS, Action, Kind, Schedule, Tied
from trainer.schedule.assemble import evaluation_schedule, generation_schedule, training_schedule
from trainer.schedule.merge import merge_for_rank
from trainer.schedule.orders import ORDERS
from trainer.schedule.validate import ScheduleError, validate

Lists = list[list[Action]]


def lists_of(schedule: Schedule) -> Lists:
    return [list(actions) for actions in schedule.workers]


def with_lists(schedule: Schedule, lists: Sequence[Sequence[Action]]) -> Schedule:
    return replace(schedule, workers=tuple(map(tuple, lists)))


def changed(schedule: Schedule, change: Callable[[Lists], object]) -> Schedule:
    lists = lists_of(schedule)
    change(lists)
    return with_lists(schedule, lists)


def place(lists: Lists, name: str) -> tuple[int, int]:
    """Return worker and position of the action that is written so."""
    return next((w, k) for w, actions in enumerate(lists) for k, a in enumerate(actions) if str(a) == name)


def drop(*names: str) -> Callable[[Lists], object]:
    def change(lists: Lists) -> None:
        for name in names:
            worker, position = place(lists, name)
            del lists[worker][position]

    return change


def duplicate(name: str) -> Callable[[Lists], object]:
    def change(lists: Lists) -> None:
        worker, position = place(lists, name)
        lists[worker].append(lists[worker][position])

    return change


def swap(*pairs: tuple[str, str]) -> Callable[[Lists], object]:
    def change(lists: Lists) -> None:
        for one, other in pairs:
            (v, j), (w, k) = place(lists, one), place(lists, other)
            lists[v][j], lists[w][k] = lists[w][k], lists[v][j]

    return change


def put(name: str, *actions: Action) -> Callable[[Lists], object]:
    """Insert actions in front of one."""

    def change(lists: Lists) -> None:
        worker, position = place(lists, name)
        lists[worker][position:position] = actions

    return change


@pytest.mark.parametrize("name", sorted(ORDERS))
@pytest.mark.parametrize("stages", [1, 2, 3, 5])
@pytest.mark.parametrize("micro_batches", [1, 2, 3, 8])
def test_the_trainers_own_schedules_are_valid(name: str, stages: int, micro_batches: int) -> None:
    for ties in ([], [Tied(0, stages - 1)], [Tied(0, 0), Tied(0, stages - 1)][: 1 + (stages > 1)]):
        world = [training_schedule(name, stages, m, ties) for m in (micro_batches + 1, micro_batches)]
        validate([world[0], *world, world[1]], ties)
    validate([evaluation_schedule(stages, micro_batches)], [Tied(0, stages - 1)])
    validate([generation_schedule(stages, micro_batches)] * 2)


TIES = (Tied(0, 1), Tied(0, 2))
F22 = Action(Kind.FORWARD, 2, 2)

# Worker 0 of `step` reads F0.0 sa0.0>1 F0.1 sa0.1>1 F0.2 sa0.2>1 rg0.0<1 B0.0 F0.3 sa0.3>1 ...
# rt0<1 rt0<2 A0 Z0 sT0>1 sT0>2 O0, worker 2 ra2.0<1 F2.0 B2.0 sg2.0>1 ... st2>0 A2 Z2 rT2<0 O2.
BROKEN = [
    # once
    (drop("F2.2"), "worker 2: F2.2 is missing"),
    (drop("B0.3"), "worker 0: B0.3 is missing"),
    (drop("A1"), "worker 1: A1 is missing"),
    (drop("Z1"), "worker 1: Z1 is missing"),
    (drop("O2"), "worker 2: O2 is missing"),
    (duplicate("F1.1"), "worker 1: F1.1 is there twice"),
    (duplicate("sg1.1>0"), "worker 1: sg1.1>0 is there twice"),
    # known
    (put("F0.0", Action(Kind.FORWARD, 0, 4)), "worker 0: F0.4 has a wrong micro-batch; there are 4"),
    (
        put("F0.0", Action(Kind.FORWARD, 3, 0)),
        "worker 0: F3.0 is for a stage that does not exist; there are 3",
    ),
    (swap(("F0.0", "F1.0")), "worker 0: F1.0 is for a stage that worker 1 holds"),
    (
        put("F0.0", Action(Kind.SEND_ACTIVATION, 0, 0, 2)),
        "worker 0: sa0.0>2 has a wrong stage at its other end",
    ),
    (put("F0.0", Action(Kind.SAMPLE, 0, 0)), "worker 0: S0.0 is not for the last stage, 2"),
    # before
    (swap(("F0.0", "sa0.0>1")), "worker 0: sa0.0>1 comes before F0.0, which it needs"),
    (swap(("ra1.0<0", "F1.0")), "worker 1: F1.0 comes before ra1.0<0, which it needs"),
    (swap(("rg0.0<1", "B0.0")), "worker 0: B0.0 comes before rg0.0<1, which it needs"),
    (swap(("B1.0", "sg1.0>0")), "worker 1: sg1.0>0 comes before B1.0, which it needs"),
    (swap(("F2.1", "B2.1")), "worker 2: B2.1 comes before F2.1, which it needs"),
    (swap(("B2.2", "B2.3"), ("sg2.2>1", "sg2.3>1")), "worker 2: B2.3 comes before F2.3, which it needs"),
    (swap(("A1", "sg1.3>0"), ("A1", "B1.3")), "worker 1: A1 comes before B1.3, which it needs"),
    (swap(("A0", "rt0<2")), "worker 0: A0 comes before rt0<2, which it needs"),
    (swap(("rt0<1", "rt0<2")), "worker 0: rt0<2 comes before rt0<1, which it needs"),
    (swap(("A0", "Z0")), "worker 0: Z0 comes before A0, which it needs"),
    (swap(("Z0", "sT0>1")), "worker 0: sT0>1 comes before Z0, which it needs"),
    (drop("rg1.2<2", "sg2.2>1"), "worker 1: B1.2 needs rg1.2<2, which is missing"),
    # last
    (swap(("O2", "rT2<0")), "worker 2: O2 comes before rT2<0, which it needs"),
    (swap(("sT0>2", "O0")), "worker 0: O0 comes before sT0>2, which it needs"),
    # ties
    (drop("st2>0"), "worker 2: st2>0 is missing: stages 0 and 2 tie"),
    (drop("st2>0", "rt0<2", "sT0>2", "rT2<0"), "worker 2: st2>0 is missing: stages 0 and 2 tie"),
    (drop("rt0<1"), "worker 0: rt0<1 is missing"),
    (drop("sT0>1"), "worker 0: sT0>1 is missing"),
    (drop("rT1<0"), "worker 1: rT1<0 is missing"),
    (put("A2", Action(Kind.SEND_TIE, 2, peer=1)), "worker 2: st2>1 ties nothing"),
    (put("A1", Action(Kind.RECEIVE_TIE, 1, peer=2)), "worker 1: rt1<2 belongs to no tie"),
    # messages
    (drop("sa0.1>1"), "worker 1: ra1.1<0 has no send at its other end"),
    (drop("ra1.1<0"), "worker 1: F1.1 needs ra1.1<0, which is missing"),
    (drop("sg1.0>0"), "worker 0: rg0.0<1 has no send at its other end"),
    (swap(("sa0.0>1", "sa0.1>1")), "worker 0: sa0.1>1 comes before F0.1, which it needs"),
    (
        swap(("sa0.0>1", "F0.1"), ("sa0.0>1", "sa0.1>1")),
        "worker 1: ra1.0<0 is out of order: worker 0 has sa0.1>1 there",
    ),
]


@pytest.mark.parametrize(("change", "message"), BROKEN, ids=[message for _, message in BROKEN])
def test_a_broken_rule_is_named(change: Callable[[Lists], object], message: str) -> None:
    step = training_schedule("1f1b", 3, 4, TIES)
    validate([step, step], TIES)
    with pytest.raises(ScheduleError) as error:
        validate([step, changed(step, change)], TIES)
    assert str(error.value) == f"schedule 1f1b, replica 1: {message}"


def test_backwards_out_of_order() -> None:
    step = changed(training_schedule("gpipe", 1, 3), swap(("B0.0", "B0.1")))
    with pytest.raises(ScheduleError, match=r"B0\.1 comes before B0\.0, which it needs"):
        validate([step])


def test_a_deadlock_within_a_replica() -> None:
    """Each worker does what is allowed, but waits before it sends what the other waits for."""

    def change(lists: Lists) -> None:
        lists[0].remove(late := Action(Kind.SEND_ACTIVATION, 0, 1, 1))
        lists[0].insert(place(lists, "rg0.0<1")[1] + 1, late)
        lists[1].remove(early := Action(Kind.RECEIVE_ACTIVATION, 1, 1, 0))
        lists[1].insert(0, early)
        lists[1][0], lists[1][1] = lists[1][1], lists[1][0]

    step = changed(training_schedule("gpipe", 2, 2), change)
    with pytest.raises(ScheduleError) as error:
        validate([step])
    assert str(error.value) == (
        "deadlock: worker 0 waits in rg0.0<1, for worker 1 waits in ra1.1<0, for worker 0"
    )


def two_stages_on_a_worker(*tail: Action) -> Schedule:
    computing = [(Kind.FORWARD, 0), (Kind.FORWARD, 1), (Kind.BACKWARD, 1), (Kind.BACKWARD, 0)]
    actions = (*(Action(kind, stage, 0) for kind, stage in computing), *tail)
    return Schedule("two", (0, 0), 1, ((*actions, Action(Kind.STEP, 0), Action(Kind.STEP, 1)),))


A0, A1, Z0, Z1 = (Action(kind, stage) for kind in (Kind.AVERAGE, Kind.FINISH) for stage in (0, 1))


def test_something_behind_the_step() -> None:
    step = two_stages_on_a_worker(A0, Z0, A1, Z1)
    with pytest.raises(ScheduleError, match=r"worker 0: Z1 comes after O0, which must be last"):
        validate([changed(step, swap(("Z1", "O0")))])


def test_replicas_that_average_in_another_order() -> None:
    validate([two_stages_on_a_worker(A0, Z0, A1, Z1), two_stages_on_a_worker(A0, A1, Z1, Z0)])
    with pytest.raises(
        ScheduleError, match=r"worker 0: averages stages \[1, 0\] on replica 1, but \[0, 1\] on"
    ):
        validate([two_stages_on_a_worker(A0, A1, Z0, Z1), two_stages_on_a_worker(A1, A0, Z0, Z1)])


def test_a_deadlock_across_replicas() -> None:
    """Two stages own a parameter that the other uses; each of the replicas alone comes to an end.

    On replica 0 stage 1 averages when it has stage 0's averaged parameter, on replica 1 the other way round.
    """
    ties = (Tied(0, 1), Tied(1, 0))
    step = training_schedule("gpipe", 2, 1, ties)
    send_first = changed(step, swap(("rt0<1", "st0>1")))

    def received_first(stage: int) -> Schedule:
        def change(lists: Lists) -> None:
            received = Action(Kind.RECEIVE_TIED, stage, peer=1 - stage)
            lists[stage].remove(received)
            lists[stage].insert(place(lists, f"A{stage}")[1], received)

        return changed(send_first, change)

    for stage in (0, 1):
        validate([received_first(stage)] * 2, ties)
    with pytest.raises(ScheduleError) as error:
        validate([received_first(1), received_first(0)], ties)
    assert str(error.value) == (
        "deadlock: worker 0 of replica 0 waits in Z0, for worker 0 of replica 1 waits in rT0<1, "
        "for worker 1 of replica 1 waits in Z1, for worker 1 of replica 0 waits in rT1<0, "
        "for worker 0 of replica 0"
    )


def test_replicas_must_place_stages_alike() -> None:
    straight = training_schedule("gpipe", 2, 1)
    crossed = replace(straight, placement=(1, 0), workers=straight.workers[::-1])
    with pytest.raises(ScheduleError, match="replica 1 places its stages in another way than replica 0"):
        validate([straight, crossed])


def test_a_placement_without_a_list() -> None:
    with pytest.raises(ScheduleError, match=r"placement \(0, 7\) does not fit 2 workers"):
        validate([replace(training_schedule("gpipe", 2, 1), placement=(0, 7))])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("F1.2"), "worker 1: F1.2 is missing"),
        (drop("S1.2"), "worker 1: S1.2 is missing"),
        (swap(("S1.1", "sk1.1>0")), "worker 1: sk1.1>0 comes before S1.1, which it needs"),
        (swap(("F0.1", "rk0.0<1")), "worker 0: F0.1 comes before rk0.0<1, which it needs"),
        (drop("rk0.2<1"), "worker 1: sk1.2>0 has no receive at its other end"),
        (
            put("F0.0", Action(Kind.RECEIVE_TOKEN, 0, 1, 0)),
            "worker 0: rk0.1<0 has a wrong stage at its other end",
        ),
    ],
)
def test_generation(change: Callable[[Lists], object], message: str) -> None:
    with pytest.raises(ScheduleError) as error:
        validate([changed(generation_schedule(2, 3), change)])
    assert str(error.value) == f"schedule generation, replica 0: {message}"


class HangError(Exception):
    """The interpreter has not come to an end."""


class Interpreter:
    """Runs lists on symbols in place of tensors, independently of the trainer's own code.

    A channel is a queue that knows no micro-batches, and averages meet by their order, as NCCL has it. What
    is wrong gives other symbols, a missing key, a queue that is not empty, or a hang.
    """

    def __init__(self, world: Sequence[Schedule]) -> None:
        self.world = world
        self.values: dict[tuple[object, ...], object] = {}
        self.gradients: defaultdict[tuple[int, int], list[object]] = defaultdict(list)
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
        # Micro-batches that are left out, and steps, show in what is compared.
        return unread, self.stepped, {k: v for k, v in self.values.items() if k[1] in ("F", "S", "rk")}

    def act(self, replica: int, worker: int, action: Action) -> bool:
        """Do an action; return False if it must wait."""
        kind, s, i = action.kind, action.stage, action.micro_batch
        if kind in RECEIVES:
            queue = self.queues[replica, kind, action.peer, s]
            if not queue:
                return False
            self.values[replica, kind.value, s, i, action.peer] = queue.popleft()
            if kind is Kind.RECEIVE_TIE:
                self.gradients[replica, s].append(self.values[replica, kind.value, s, i, action.peer])
        elif kind in SENDS:
            self.queues[replica, RECEIVE_OF[kind], s, action.peer].append(self.sent(replica, action))
        elif kind is Kind.FORWARD:
            assert (replica, "F", s, i) not in self.values
            self.values[replica, "F", s, i] = ("F", s, self.input(replica, s, i))
        elif kind is Kind.BACKWARD:
            self.backward(replica, s, i)
        elif kind is Kind.SAMPLE:
            self.values[replica, "S", s, i] = ("S", self.values[replica, "F", s, i])
        elif kind is Kind.AVERAGE:
            self.values[replica, "A", s] = len(self.averages[replica, worker])
            self.averages[replica, worker].append(tuple(self.gradients[replica, s]))
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
        """Return what was received, or what the worker itself has made if its list has no such receive."""
        s, i, peer = receive.stage, receive.micro_batch, receive.peer
        placement = self.world[replica].placement
        if placement[s] == placement[peer] and receive not in self.world[replica].workers[placement[s]]:
            return self.values[replica, letter, peer, i]
        return self.values[replica, receive.kind.value, s, i, peer]

    def backward(self, replica: int, s: int, i: int) -> None:
        gradient: object = "loss"
        if s + 1 < self.world[replica].stages:
            gradient = self.from_neighbour(replica, Action(Kind.RECEIVE_GRADIENT, s, i, s + 1), "B")
        self.values[replica, "B", s, i] = ("B", s, self.values[replica, "F", s, i], gradient)
        self.gradients[replica, s].append(self.values[replica, "B", s, i])

    def sent(self, replica: int, action: Action) -> object:
        letter = {Kind.SEND_ACTIVATION: "F", Kind.SEND_GRADIENT: "B", Kind.SEND_TOKEN: "S"}.get(action.kind)
        if letter is not None:
            return self.values[replica, letter, action.stage, action.micro_batch]
        if action.kind is Kind.SEND_TIE:
            return ("tie", tuple(self.gradients[replica, action.stage]))
        return self.values[replica, "Z", action.stage]

    def wait(self, replica: int, worker: int, action: Action) -> bool:
        s = action.stage
        if action.kind is Kind.FINISH:
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
        tied = [self.values.get((replica, "rT", s, -1, peer)) for peer in stages]
        self.stepped[replica, s] = (self.values[replica, "Z", s], tied)
        return True


def outcome(world: Sequence[Schedule]) -> object:
    try:
        return Interpreter(world).run()
    except (HangError, LookupError, AssertionError) as error:
        return type(error)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[Schedule], list[Tied]]:
    """Return one to three replicas, a stage a worker or several, that train, evaluate or generate."""
    name = draw(st.sampled_from([*sorted(ORDERS), "evaluation", "generation"]))
    devices, ranks, m = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    p = devices * ranks
    ties = draw(st.sampled_from([[], [Tied(0, p - 1)], [Tied(0, 1), Tied(0, p - 1)] if p > 2 else []]))
    local = draw(st.booleans())
    world = []
    for longer in sorted(draw(st.lists(st.booleans(), min_size=1, max_size=3)), reverse=True):
        if name == "evaluation":
            schedule = evaluation_schedule(p, m + longer)
        elif name == "generation":
            schedule = generation_schedule(p, m + longer)
        else:
            schedule = training_schedule(name, p, m + longer, ties)
        world.append(on_ranks(schedule, devices, local=local))
    return world, ties


def on_ranks(schedule: Schedule, devices: int, *, local: bool) -> Schedule:
    """Return a list a rank; with `local`, activations and gradients that stay on a rank are no messages."""
    placement = tuple(stage // devices for stage in range(schedule.stages))
    nearby = (Kind.SEND_ACTIVATION, Kind.RECEIVE_ACTIVATION, Kind.SEND_GRADIENT, Kind.RECEIVE_GRADIENT)
    workers = [
        tuple(
            action
            for action in merge_for_rank(schedule, range(rank * devices, (rank + 1) * devices))
            if not (local and action.kind in nearby and placement[action.stage] == placement[action.peer])
        )
        for rank in range(schedule.stages // devices)
    ]
    return replace(schedule, placement=placement, workers=tuple(workers))


def mutate(draw: st.DrawFn, lists: Lists) -> None:
    """Drop, double, move or swap actions, or change what one of them is about."""
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


@settings(max_examples=1500, deadline=None)
@given(mutated())
def test_what_is_accepted_computes_the_same(case: tuple[list[Schedule], list[Schedule], list[Tied]]) -> None:
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
    """Return a world, and the same with a few neighbours changed over in every list of a replica."""
    world, ties = draw(worlds())
    replica = draw(st.integers(0, len(world) - 1))
    lists = lists_of(world[replica])
    for actions in lists:
        for k in draw(st.lists(st.integers(1, max(len(actions) - 1, 1)), max_size=3)):
            actions[k - 1 : k + 1] = reversed(actions[k - 1 : k + 1])
    other = list(world)
    other[replica] = with_lists(world[replica], lists)
    return world, other, ties


@settings(max_examples=1000, deadline=None)
@given(reordered())
def test_what_would_hang_or_differ_is_rejected(
    case: tuple[list[Schedule], list[Schedule], list[Tied]],
) -> None:
    world, other, ties = case
    if outcome(other) != outcome(world):
        with pytest.raises(ScheduleError):
            validate(other, ties)
