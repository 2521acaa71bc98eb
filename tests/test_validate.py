"""The validator: each rule broken in turn, and deadlocks; `test_validate_random` tests random changes."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from tests.support.schedules import training_schedule
from trainer.schedule.actions import Action, Kind, Schedule, Tied
from trainer.schedule.assemble import evaluation_schedule, generation_schedule
from trainer.schedule.resolve import recipes
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
    """Return worker and position of the action with this text."""
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


@pytest.mark.parametrize("name", list(recipes()))
@pytest.mark.parametrize("stages", [1, 2, 3, 5])
@pytest.mark.parametrize("micro_batches", [1, 2, 3, 8])
def test_the_trainers_own_schedules_are_valid(name: str, stages: int, micro_batches: int) -> None:
    for ties in ([], [Tied(0, stages - 1)], [Tied(0, 0), Tied(0, stages - 1)][: 1 + (stages > 1)]):
        world = [training_schedule(name, stages, m, ties) for m in (micro_batches + 1, micro_batches)]
        validate([world[0], *world, world[1]], ties)
    validate([evaluation_schedule(range(stages), micro_batches)], [Tied(0, stages - 1)])
    validate([generation_schedule(range(stages), micro_batches)] * 2)


TIES = (Tied(0, 1), Tied(0, 2))
F22 = Action(Kind.FORWARD, 2, 2)

# Worker 0 of `step` reads F0.0 sa0.0>1 F0.1 sa0.1>1 F0.2 sa0.2>1 rg0.0<1 B0.0 F0.3 sa0.3>1 ...
# rt0<1 rt0<2 A0 Aw0 sR0>1 sR0>2 U0, worker 2 ra2.0<1 F2.0 B2.0 sg2.0>1 ... st2>0 A2 Aw2 rR2<0 U2.
BROKEN = [
    # once
    (drop("F2.2"), "worker 2: F2.2 is missing"),
    (drop("B0.3"), "worker 0: B0.3 is missing"),
    (drop("A1"), "worker 1: A1 is missing"),
    (drop("Aw1"), "worker 1: Aw1 is missing"),
    (drop("U2"), "worker 2: U2 is missing"),
    (duplicate("F1.1"), "worker 1: F1.1 appears twice"),
    (duplicate("sg1.1>0"), "worker 1: sg1.1>0 appears twice"),
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
    (swap(("A0", "Aw0")), "worker 0: Aw0 comes before A0, which it needs"),
    (swap(("Aw0", "sR0>1")), "worker 0: sR0>1 comes before Aw0, which it needs"),
    (drop("rg1.2<2", "sg2.2>1"), "worker 1: B1.2 needs rg1.2<2, which is missing"),
    # last
    (swap(("U2", "rR2<0")), "worker 2: U2 comes before rR2<0, which it needs"),
    (swap(("sR0>2", "U0")), "worker 0: U0 comes before sR0>2, which it needs"),
    # ties
    (drop("st2>0"), "worker 2: st2>0 is missing: stages 0 and 2 are tied"),
    (drop("st2>0", "rt0<2", "sR0>2", "rR2<0"), "worker 2: st2>0 is missing: stages 0 and 2 are tied"),
    (drop("rt0<1"), "worker 0: rt0<1 is missing"),
    (drop("sR0>1"), "worker 0: sR0>1 is missing"),
    (drop("rR1<0"), "worker 1: rR1<0 is missing"),
    (put("A2", Action(Kind.SEND_TIED_GRADIENT, 2, peer=1)), "worker 2: st2>1 ties nothing"),
    (put("A1", Action(Kind.RECEIVE_TIED_GRADIENT, 1, peer=2)), "worker 1: rt1<2 belongs to no tie"),
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
    """Each worker's list is legal, but it waits before it sends the message that the other needs."""

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
        "deadlock: worker 0 waits in rg0.0<1 for worker 1, which waits in ra1.1<0 for worker 0"
    )


def two_stages_on_a_worker(*tail: Action) -> Schedule:
    computing = [(Kind.FORWARD, 0), (Kind.FORWARD, 1), (Kind.BACKWARD, 1), (Kind.BACKWARD, 0)]
    actions = (*(Action(kind, stage, 0) for kind, stage in computing), *tail)
    return Schedule("two", (0, 0), 1, ((*actions, Action(Kind.UPDATE, 0), Action(Kind.UPDATE, 1)),))


A0, A1, WAIT0, WAIT1 = (
    Action(kind, stage) for kind in (Kind.REDUCE_START, Kind.REDUCE_WAIT) for stage in (0, 1)
)


def test_an_action_after_the_step() -> None:
    step = two_stages_on_a_worker(A0, WAIT0, A1, WAIT1)
    with pytest.raises(ScheduleError, match=r"worker 0: Aw1 comes after U0, which must be last"):
        validate([changed(step, swap(("Aw1", "U0")))])


def test_replicas_that_average_in_another_order() -> None:
    validate([two_stages_on_a_worker(A0, WAIT0, A1, WAIT1), two_stages_on_a_worker(A0, A1, WAIT1, WAIT0)])
    with pytest.raises(
        ScheduleError, match=r"worker 0: averages stages \[1, 0\] on replica 1, but \[0, 1\] on"
    ):
        validate([two_stages_on_a_worker(A0, A1, WAIT0, WAIT1), two_stages_on_a_worker(A1, A0, WAIT0, WAIT1)])


def test_a_deadlock_across_replicas() -> None:
    """Each of two stages owns a parameter that the other uses; each replica alone would terminate.

    On replica 0, stage 1 averages once it has stage 0's averaged parameter; on replica 1, vice versa.
    """
    ties = (Tied(0, 1), Tied(1, 0))
    step = training_schedule("gpipe", 2, 1, ties)
    send_first = changed(step, swap(("rt0<1", "st0>1")))

    def received_first(stage: int) -> Schedule:
        def change(lists: Lists) -> None:
            received = Action(Kind.RECEIVE_REDUCED_GRADIENT, stage, peer=1 - stage)
            lists[stage].remove(received)
            lists[stage].insert(place(lists, f"A{stage}")[1], received)

        return changed(send_first, change)

    for stage in (0, 1):
        validate([received_first(stage)] * 2, ties)
    with pytest.raises(ScheduleError) as error:
        validate([received_first(1), received_first(0)], ties)
    assert str(error.value) == (
        "deadlock: worker 0 of replica 0 waits in Aw0 for worker 0 of replica 1, which waits in rR0<1 "
        "for worker 1 of replica 1, which waits in Aw1 for worker 1 of replica 0, which waits in rR1<0 "
        "for worker 0 of replica 0"
    )


def test_replicas_must_place_stages_alike() -> None:
    straight = training_schedule("gpipe", 2, 1)
    crossed = replace(straight, placement=(1, 0), workers=straight.workers[::-1])
    with pytest.raises(ScheduleError, match="replica 1 places its stages differently from replica 0"):
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
        validate([changed(generation_schedule(range(2), 3), change)])
    assert str(error.value) == f"schedule generation, replica 0: {message}"


def test_last_token_must_be_sent() -> None:
    """No forward needs it, but it belongs to the text."""
    whole = generation_schedule(range(2), 3)
    first, last = whole.workers
    cut = replace(whole, workers=(first[:-1], last[:-1]))
    with pytest.raises(ScheduleError, match=r"worker 1: sk1\.2>0 is missing"):
        validate([cut])
