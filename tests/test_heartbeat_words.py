"""Who is named as the cause when ranks stand still, and in which words."""

from dataclasses import replace

import pytest

from trainer.distributed.heartbeat import Phase, Waits
from trainer.distributed.layout import Layout
from trainer.schedule.actions import Action, Kind
from trainer.schedule.coding import number_of
from trainer.watch.seen import CUT, GONE, SILENT, UNKNOWN, Seen
from trainer.watch.verdict import Limits, Verdict, judge
from trainer.watch.words import doing, headline, name_of, stack_lines, table

LIMITS = Limits(30, 600)
LAYOUT = Layout(8, 2, 1, (0, 1))  # 4 replicas of 2 stages
WORLD = 8


def seen(rank: int, action: Action | None = None, **facts: object) -> Seen:
    place = {"stages": [rank % 2], "replica": rank // 2}
    number = 0 if action is None else number_of(action)
    base = Seen(rank, f"h{rank // 4 + 1}", still=31, phase=Phase.TRAIN, step=12, number=number, place=place)
    return replace(base, **facts)  # type: ignore[arg-type]


def receives_gradient(micro_batch: int = 3) -> Action:
    return Action(Kind.RECEIVE_GRADIENT, 0, micro_batch, 1)


FORWARD = Action(Kind.FORWARD, 1, 3)
AVERAGES = Action(Kind.REDUCE_WAIT, 0)


def verdict_of(*ranks: Seen, mine: tuple[int, ...] | None = None) -> Verdict | None:
    by_rank = {each.rank: each for each in ranks}
    return judge(by_rank, mine or sorted(by_rank), LIMITS, LAYOUT, WORLD)


def test_a_stopped_rank_is_the_cause() -> None:
    ranks = {4: seen(4, receives_gradient()), 5: seen(5, FORWARD, state="T")}
    verdict = judge(ranks, [4, 5], LIMITS, LAYOUT, WORLD)
    assert verdict is not None
    assert (verdict.causes, verdict.over, verdict.circle) == ((5,), True, False)
    assert headline(verdict, ranks, LAYOUT, WORLD) == (
        "no progress for 31 s: rank 5 (stage 1, replica 2, host h2) is stopped (as by SIGSTOP), in the "
        "forward of micro-batch 3 of step 12; rank 4 waits for it"
    )
    assert table(ranks, LAYOUT, WORLD)[0] == (
        "  rank 4 (stage 0, replica 2, host h2) waits for the gradient of micro-batch 3 from rank 5, for 31 s"
    )


def test_while_anybody_in_the_chain_makes_progress_nothing_is_wrong() -> None:
    assert verdict_of(seen(0, receives_gradient()), seen(1, FORWARD, still=2)) is None
    others = [seen(2, AVERAGES), seen(4, AVERAGES), seen(6, receives_gradient()), seen(7, FORWARD, still=1)]
    assert verdict_of(seen(0, AVERAGES), *others) is None


def test_a_chain_is_followed_to_its_end() -> None:
    """All replicas average, but for one that waits for its second stage, which another host cannot reach."""
    ranks = [seen(0, AVERAGES), seen(2, AVERAGES), seen(4, AVERAGES), seen(6, receives_gradient())]
    verdict = verdict_of(*ranks, seen(7, FORWARD, state=CUT), mine=(0, 2))
    assert verdict is not None
    assert verdict.causes == (7,)
    assert verdict.over


@pytest.mark.parametrize(
    ("facts", "over"),
    [
        ({"busy": True}, False),
        ({"busy": True, "still": 601}, True),
        ({}, True),
        ({"state": SILENT}, True),
        ({"state": GONE}, True),
        ({"state": CUT, "still": 11}, True),
        ({"state": UNKNOWN}, False),
        ({"state": UNKNOWN, "still": float("inf")}, True),
    ],
)
def test_how_long_one_may_wait_for_a_rank(facts: dict[str, object], over: bool) -> None:
    still = 700 if facts.get("still", 0) == 601 or facts.get("still") == float("inf") else 31
    verdict = verdict_of(seen(0, receives_gradient(), still=still), seen(1, FORWARD, **facts))
    assert verdict is not None
    assert verdict.over == over
    assert verdict.causes == (1,)


@pytest.mark.parametrize("facts", [{"debugged": True}, {"state": "t"}])
def test_a_debugger_is_no_stall(facts: dict[str, object]) -> None:
    assert verdict_of(seen(0, receives_gradient()), seen(1, FORWARD, **facts)) is None


@pytest.mark.parametrize("phase", [Phase.START, Phase.LOAD, Phase.SAVE, Phase.RESTORE])
def test_what_computes_outside_of_steps_may_take_as_long_as_it_likes(phase: Phase) -> None:
    waits = seen(0, waits=Waits.WORLD, joined=(4, 0, 0), still=100_000)
    assert (
        verdict_of(waits, seen(1, phase=phase, busy=True, joined=(3, 0, 0), still=100_000), mine=(0,)) is None
    )


def test_a_save_that_waits_is_reported_first_and_ended_later() -> None:
    group = [seen(rank, waits=Waits.WORLD, joined=(4, 0, 0), still=400) for rank in range(8) if rank != 1]
    for still, over in ((31, False), (301, True)):
        verdict = verdict_of(*group, seen(1, phase=Phase.SAVE, state="D", still=still, joined=(3, 0, 0)))
        assert verdict is not None
        assert (verdict.causes, verdict.over) == ((1,), over)


def test_ranks_that_wait_for_one_another() -> None:
    ranks = {
        0: seen(0, receives_gradient()),
        1: seen(1, Action(Kind.RECEIVE_ACTIVATION, 1, 4, 0), host="h9"),
    }
    verdict = judge(ranks, [0], LIMITS, LAYOUT, WORLD)
    assert verdict is not None
    assert verdict.circle
    assert headline(verdict, ranks, LAYOUT, WORLD) == (
        "no progress for 31 s: rank 0 (stage 0, replica 0, host h1), rank 1 (stage 1, replica 0, host h9) "
        "wait for one another (is the network between their hosts in order?)"
    )


def test_who_has_not_joined_is_waited_for() -> None:
    ranks = {rank: seen(rank, waits=Waits.WORLD, joined=(9, 0, 0), phase=Phase.REPORT) for rank in range(8)}
    ranks[3] = seen(3, joined=(8, 0, 0), phase=Phase.SAVE)
    assert doing(ranks[0], ranks, LAYOUT, WORLD) == "waits in what follows step 12 for rank 3"


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (seen(0, FORWARD), "is in the forward of micro-batch 3 of step 12, and does not compute"),
        (seen(0, FORWARD, busy=True), "is in the forward of micro-batch 3 of step 12, computing"),
        (seen(0, phase=Phase.READ), "is in reading samples of step 12, and does not compute"),
        (seen(0, phase=Phase.SAVE, state="D"), "is in saving a checkpoint after step 12, and waits in the"),
        (seen(1, FORWARD, phase=Phase.VALIDATE), "is in the forward of micro-batch 3 of the validation, and"),
        (seen(0, AVERAGES), "waits for the averaged gradients, with ranks 2, 4, 6"),
        (seen(0, waits=Waits.RANK, peer=4, phase=Phase.BUILD), "waits in building its layers for rank 4"),
        (seen(0, AVERAGES, state=GONE), "has ended, in averaging the gradients of step 12"),
        (seen(0, phase=Phase.MPI), "waits for MPI to start, which all ranks have to join"),
    ],
)
def test_what_a_rank_does(one: Seen, words: str) -> None:
    assert doing(one, {one.rank: one}, LAYOUT, WORLD).startswith(words)


def test_before_anything_is_known() -> None:
    assert name_of(Seen(3, "h2")) == "rank 3 (host h2)"


def test_what_other_hosts_send_is_what_they_saw() -> None:
    one = seen(5, FORWARD, waits=Waits.PIPELINE, joined=(1, 2, 3))
    assert Seen.of(one.plain()) == one


def test_the_innermost_lines_of_the_main_thread() -> None:
    text = (
        'Thread 0x1 (most recent call first):\n  File "a.py", line 1 in other\n\n'
        'Current thread 0x2 (most recent call first):\n  File "b.py", line 2 in inner\n'
        '  File "c.py", line 3 in outer\n'
    )
    assert stack_lines(text, 1) == ['File "b.py", line 2 in inner']
