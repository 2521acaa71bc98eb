"""Orders of computation, drawn as staircases, and the action lists built from them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.schedules import training_schedule
from trainer.schedule.actions import (
    COMPLETES_WEIGHT_GRADIENT,
    MAKES_INPUT_GRADIENT,
    RECEIVES,
    SENDS,
    Action,
    Kind,
    Schedule,
    Tied,
    parse_action,
)
from trainer.schedule.assemble import evaluation_schedule, generation_schedule
from trainer.schedule.draw import draw_text
from trainer.schedule.machine import Machine
from trainer.schedule.peak_memory import StageBytes, live_bytes, peak_live, peak_live_bytes
from trainer.schedule.resolve import recipes
from trainer.schedule.simulate import simulate, simulate_on
from trainer.schedule.validate import validate

SPLIT = (Kind.BACKWARD_INPUT, Kind.BACKWARD_WEIGHT)
NAMES = st.sampled_from(list(recipes()))


def staircase(schedule: Schedule, backward: float = 1) -> list[str]:
    """Return the drawing's rows; a forward takes one unit of time."""
    stages = schedule.stages
    return draw_text(schedule, simulate(schedule, [1] * stages, [backward] * stages)).splitlines()


def words(actions: tuple[Action, ...]) -> str:
    return " ".join(map(str, actions))


def test_gpipe() -> None:
    assert staircase(training_schedule("gpipe", 3, 4)) == [
        "0 |0   1   2   3   ................(0) (1) (2) (3) |",
        "1 |....0   1   2   3   ........(0) (1) (2) (3) ....|",
        "2 |........0   1   2   3   (0) (1) (2) (3) ........|",
    ]


def test_1f1b() -> None:
    assert staircase(training_schedule("1f1b", 3, 5)) == [
        "0 |0   1   2   ........(0) 3   (1) 4   (2) ....(3) ....(4) |",
        "1 |....0   1   ....(0) 2   (1) 3   (2) 4   (3) ....(4) ....|",
        "2 |........0   (0) 1   (1) 2   (2) 3   (3) 4   (4) ........|",
    ]


def test_1f1b_with_backwards_twice_as_long() -> None:
    assert staircase(training_schedule("1f1b", 2, 3), backward=2) == [
        "0 |0 1 ....(0) 2 (1) ..(2) |",
        "1 |..0 (0) 1 (1) 2 (2) ....|",
    ]


def test_zb_h1() -> None:
    """Each part of a split backward takes half the time of a full one."""
    assert staircase(training_schedule("zb_h1", 3, 5), backward=2) == [
        "0 |0   1   2   ........(0)     3   (1)     4   (2)     (3)     (4)     |",
        "1 |....0   1   ....(0) 2   (1) {0} 3   (2) {1} 4   (3) {2} (4) {3} {4} |",
        "2 |........0   (0) 1   (1) 2   (2) {0} 3   (3) {1} 4   (4) {2} {3} {4} |",
    ]


@given(st.integers(1, 8), st.integers(0, 12))
def test_zb_h1_leaves_one_unit_a_stage_idle_within_1f1b_memory(p: int, more: int) -> None:
    m = p + more
    schedule = training_schedule("zb_h1", p, m)
    assert simulate(schedule, [1.0] * p, [2.0] * p).makespan == 3 * m + p - 1
    assert max(peak_live(schedule)) == max(peak_live(training_schedule("1f1b", p, m)))


def test_interleaved() -> None:
    """Two stages a worker: worker 0 holds 0 and 2, worker 1 holds 1 and 3."""
    schedule = training_schedule("interleaved", 2, 4)
    assert schedule.placement == (0, 1, 0, 1)
    computed = [action for action in schedule.workers[0] if action.kind in (Kind.FORWARD, Kind.BACKWARD)]
    assert words(tuple(computed)) == (
        "F0.0 F0.1 F2.0 F2.1 F0.2 B2.0 F0.3 B2.1 F2.2 B0.0 F2.3 B0.1 B2.2 B2.3 B0.2 B0.3"
    )


@given(st.integers(1, 6), st.integers(1, 3), st.integers(1, 4))
def test_interleaved_fills_and_drains_as_many_times_as_fast(p: int, groups: int, v: int) -> None:
    m = groups * p
    schedule = training_schedule("interleaved", p, m, stages_per_worker=v)
    stages = schedule.stages
    assert simulate(schedule, [1.0] * stages, [2.0] * stages).makespan == 3 * (v * m + p - 1)
    evaluation = evaluation_schedule(schedule.placement, m)
    assert simulate(evaluation, [1.0] * stages, []).makespan == v * m + p - 1


@pytest.mark.slow
@given(st.integers(1, 8), st.integers(1, 20), st.integers(1, 3))
def test_interleaved_terminates_with_any_number_of_micro_batches(p: int, m: int, v: int) -> None:
    schedule = training_schedule("interleaved", p, m, [Tied(0, p * v - 1)], v)
    validate([schedule])
    validate([evaluation_schedule(schedule.placement, m)])
    validate([generation_schedule(schedule.placement, m)])


@pytest.mark.slow
@settings(max_examples=20)
@given(st.integers(1, 10), st.integers(1, 24))
def test_zb_v_keeps_within_1f1b_memory_and_near_its_bound(p: int, m: int) -> None:
    schedule = training_schedule("zb_v", p, m)
    assert schedule.placement == (*range(p), *reversed(range(p)))
    assert max(peak_live(schedule)) <= 2 * p  # each half of a 1F1B stage's activations
    if m >= p:
        seconds = simulate(schedule, [1.0] * 2 * p, [2.0] * 2 * p).makespan
        assert seconds <= 1.1 * (6 * m + p - 1)
        assert p > 4 or seconds == 6 * m + p - 1


@pytest.mark.slow
@settings(max_examples=20)
@given(st.integers(1, 5), st.integers(1, 16), st.sampled_from([0.02, 0.05, 0.1, 0.2]))
def test_zb_v_splits_only_where_it_pays(p: int, m: int, more: float) -> None:
    """Where split backwards are more work than full ones: never slower than splitting freely."""
    times = {
        Kind.FORWARD: 1.0,
        Kind.BACKWARD: 2.0,
        Kind.BACKWARD_INPUT: 1 + more,
        Kind.BACKWARD_WEIGHT: 1 + more,
    }
    work = {kind: [seconds] * 2 * p for kind, seconds in times.items()}
    expensive, free = training_schedule("zb_v", p, m, work=work), training_schedule("zb_v", p, m)
    validate([expensive])
    assert max(peak_live(expensive)) <= 2 * p
    if m >= 2 * p:
        seconds = [simulate_on(Machine(work), [schedule])[0].makespan for schedule in (expensive, free)]
        assert seconds[0] <= seconds[1] + 1e-9
        assert seconds[0] < seconds[1] - 1e-9 or splits(expensive) <= splits(free)


def splits(schedule: Schedule) -> int:
    return sum(action.kind is Kind.BACKWARD_WEIGHT for actions in schedule.workers for action in actions)


def test_evaluation() -> None:
    assert staircase(evaluation_schedule(range(3), 4)) == [
        "0 |0 1 2 3 ....|",
        "1 |..0 1 2 3 ..|",
        "2 |....0 1 2 3 |",
    ]


def test_generation_goes_round() -> None:
    assert staircase(generation_schedule(range(2), 3)) == [
        "0 |0 ..1 ..2 ..|",
        "1 |..0 ..1 ..2 |",
    ]


def test_the_lists_of_a_small_step_with_a_tie() -> None:
    schedule = training_schedule("1f1b", 2, 2, [Tied(owner=0, use=1)])
    assert [words(actions) for actions in schedule.workers] == [
        "F0.0 sa0.0>1 F0.1 sa0.1>1 rg0.0<1 B0.0 rg0.1<1 B0.1 rt0<1 A0 Aw0 sR0>1 U0",
        "ra1.0<0 F1.0 B1.0 sg1.0>0 ra1.1<0 F1.1 B1.1 sg1.1>0 st1>0 A1 Aw1 rR1<0 U1",
    ]


def test_one_stage_sends_nothing() -> None:
    assert words(training_schedule("1f1b", 1, 2).workers[0]) == "F0.0 B0.0 F0.1 B0.1 A0 Aw0 U0"
    assert words(evaluation_schedule(range(1), 2).workers[0]) == "F0.0 F0.1"


@pytest.mark.slow
@given(NAMES, st.integers(1, 8), st.integers(1, 20))
def test_every_stage_computes_every_micro_batch_once_and_backwards_in_order(
    name: str, p: int, m: int
) -> None:
    schedule = training_schedule(name, p, m)
    for stage, worker in enumerate(schedule.placement):
        order = [action for action in schedule.workers[worker] if action.stage == stage]
        assert [a.micro_batch for a in order if a.kind is Kind.FORWARD] == list(range(m))
        assert [a.micro_batch for a in order if a.kind in MAKES_INPUT_GRADIENT] == list(range(m))
        assert [a.micro_batch for a in order if a.kind in COMPLETES_WEIGHT_GRADIENT] == list(range(m))


@given(st.integers(1, 8), st.integers(1, 20))
def test_1f1b_keeps_at_most_the_remaining_stages_alive(p: int, m: int) -> None:
    assert peak_live(training_schedule("1f1b", p, m)) == tuple(min(p - stage, m) for stage in range(p))


@given(st.integers(1, 8), st.integers(1, 20))
def test_gpipe_keeps_all_alive(p: int, m: int) -> None:
    assert peak_live(training_schedule("gpipe", p, m)) == (m,) * p


def test_live_bytes() -> None:
    sizes = [StageBytes(kept) for kept in (10, 200, 3000)]
    assert peak_live_bytes(training_schedule("1f1b", 3, 8), sizes) == (30, 400, 3000)
    assert peak_live_bytes(evaluation_schedule(range(3), 8), sizes) == (0, 0, 0)


def test_live_bytes_of_split_backwards() -> None:
    sizes = [StageBytes(kept=100, backward=50), StageBytes(kept=1000, deferred=300, backward=70)]
    schedule = training_schedule("zb_h1", 2, 3)
    computing = [action for action in schedule.workers[1] if action.kind in (Kind.FORWARD, *SPLIT)]
    assert words(tuple(computing)) == "F1.0 I1.0 F1.1 I1.1 W1.0 F1.2 I1.2 W1.1 W1.2"
    during_and_after = dict(zip(schedule.workers[1], live_bytes(schedule, 1, sizes), strict=True))
    assert [during_and_after[action] for action in computing[:5]] == [
        (0, 1000),
        (1070, 300),
        (300, 1300),
        (1370, 600),
        (600, 300),
    ]
    assert peak_live_bytes(schedule, sizes) == (250, 1370)


def test_a_drawing_that_is_too_wide_is_truncated() -> None:
    schedule = training_schedule("1f1b", 4, 64)
    rows = draw_text(schedule, simulate(schedule, [1] * 4, [2] * 4), width=80).splitlines()
    assert {len(row) for row in rows} == {80}


def test_an_empty_schedule_has_an_empty_drawing() -> None:
    assert staircase(evaluation_schedule(range(2), 0)) == ["0 ||", "1 ||"]


# --- actions as text

MICRO_BATCHES = st.one_of(st.just(-1), st.integers(0, 10**6))
PEERS = st.one_of(st.just(-1), st.integers(0, 10**6))


@pytest.mark.parametrize("kind", Kind)
@given(st.integers(0, 10**6), MICRO_BATCHES, PEERS)
def test_every_action_reads_back(kind: Kind, stage: int, micro_batch: int, peer: int) -> None:
    action = Action(kind, stage, micro_batch, peer)
    assert parse_action(str(action)) == action


def test_every_kind_has_its_own_text() -> None:
    texts = {str(Action(kind, 2, 5, 3 if kind in SENDS | RECEIVES else -1)) for kind in Kind}
    assert len(texts) == len(Kind)
    assert texts >= {"F2.5", "B2.5", "sa2.5>3", "rg2.5<3", "sR2.5>3", "A2.5"}


@pytest.mark.slow
@given(NAMES, st.integers(1, 5), st.integers(1, 6))
def test_complete_lists_read_back(name: str, p: int, m: int) -> None:
    schedule = training_schedule(name, p, m, [Tied(0, p - 1)])
    for actions in schedule.workers:
        assert tuple(map(parse_action, words(actions).split())) == actions


@pytest.mark.parametrize(
    "text",
    [
        *("", "F", "2.5", "F.5", "F2.", "F2.5.1", "F-1.0", "F2.-1", "F2.5>", "F2.5 ", " F2.5", "F2.5\n"),
        *("Q2.5", "f2.5", "SA2.5>3", "F02.5", "F2.05", "sa2.5>03", "F\N{ARABIC-INDIC DIGIT TWO}.5"),
        *("sa2.5<3", "ra2.5>3", "sa2.5=3", "F2.5>3"),  # an arrow in the wrong direction
    ],
)
def test_invalid_actions_are_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  (whatever it says)
        parse_action(text)
