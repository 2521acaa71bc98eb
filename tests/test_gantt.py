"""Gantt charts: every bar shows when its action ran and how long it took."""

import itertools
import re

import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from tests.support.schedules import training_schedule
from tests.support.steps import ALL_REDUCES, MICRO_BATCHES, STAGES, step
from trainer.metrics.timeline import StepTimeline
from trainer.report.gantt import schedules_gantt, step_gantt
from trainer.schedule.actions import Action, Kind
from trainer.schedule.assemble import generation_schedule
from trainer.schedule.simulate import simulate
from trainer.schedule.timeline import ActionTimes, RankTimeline


def artists(axes: Axes, name: str) -> list[PolyCollection]:
    return [each for each in axes.collections if re.fullmatch(name, each.get_gid() or "")]


def spans(axes: Axes, name: str) -> list[tuple[float, float]]:
    """Return left edge and width of every bar of the artists with this label."""
    boxes = [path.get_extents() for each in artists(axes, name) for path in each.get_paths()]
    return [(box.x0, box.width) for box in boxes]


def words(figure: Figure) -> list[str]:
    texts = [each.get_text() for axes in figure.axes for each in axes.texts]
    return texts + [each.get_text() for each in figure.texts]


@pytest.mark.parametrize("kind", [Kind.FORWARD, Kind.BACKWARD])
@pytest.mark.parametrize("panel", ["predicted", "measured"])
def test_every_action_is_a_bar_with_its_time_and_duration(kind: Kind, panel: str) -> None:
    timeline = step()
    axes = dict(zip(("predicted", "measured"), step_gantt(timeline).axes, strict=True))[panel]
    for number, rank in enumerate(getattr(timeline, panel)):
        expected = [
            (times.ready * 1000, (times.end - times.ready) * 1000)
            for action, times in zip(rank.actions, rank.times, strict=True)
            if action.kind is kind
        ]
        assert len(expected) == MICRO_BATCHES
        drawn = spans(axes, f"{panel}-{number}-{kind.name.lower()}")
        assert drawn == [pytest.approx(each) for each in expected]


def test_waiting_is_hatched_and_its_share_written_after_the_row() -> None:
    timeline = step()
    _, measured = step_gantt(timeline).axes
    waits = spans(measured, r"measured-\d-waiting")
    assert sum(width for _, width in waits) == pytest.approx(1000 * sum(r.waited for r in timeline.measured))
    assert all(each.get_hatch() for each in artists(measured, r"measured-\d-waiting"))
    written = [each.get_text() for each in measured.texts]
    for rank in timeline.measured:
        assert f"{rank.waited / timeline.seconds:.0%}" in written


def test_a_bar_begins_where_the_waiting_ends() -> None:
    """Worked out by hand: rank 0 works all the time, rank 1 waits half of it."""
    forwards = [Action(Kind.FORWARD, stage, 0) for stage in (0, 1)]
    times = [ActionTimes(0.0, 0.0, 0.4), ActionTimes(0.0, 0.2, 0.4)]
    both = tuple(RankTimeline((f,), (t,)) for f, t in zip(forwards, times, strict=True))
    _, measured = step_gantt(StepTimeline("by hand", 1, 0.4, 0.4, both, both, 0.0)).axes
    assert spans(measured, "measured-0-forward") == [pytest.approx((0, 400))]
    assert spans(measured, "measured-1-forward") == [pytest.approx((200, 200))]
    assert spans(measured, "measured-1-waiting") == [pytest.approx((0, 200))]
    assert [text.get_text() for text in measured.texts if text.get_text().endswith("%")] == [
        "measured: 400 ms, bubble 25%",
        "0%",
        "50%",
    ]


def test_predicted_and_measured_share_the_axis() -> None:
    predicted, measured = step_gantt(step()).axes
    assert predicted.get_xlim() == measured.get_xlim()
    assert measured.get_xlim()[1] == pytest.approx(1000 * max(step().seconds, ALL_REDUCES[-1].end))
    assert "milliseconds" in measured.get_xlabel()
    left = [axes.get_position().x0 for axes in (predicted, measured)]
    assert left[0] == left[1]


def test_all_reduces_that_overlap_are_side_by_side_beneath_the_bars() -> None:
    _, measured = step_gantt(step()).axes
    drawn = spans(measured, r"measured-0-all-reduce-\d")
    assert drawn == [pytest.approx((300, 30)), pytest.approx((320, 20))]
    boxes = [each.get_paths()[0].get_extents() for each in artists(measured, r"measured-0-all-reduce-\d")]
    row = artists(measured, "measured-0-forward")[0].get_paths()[0].get_extents()
    assert row.y1 < boxes[0].y0 < boxes[0].y1 < boxes[1].y0  # the axis points downwards


def test_title_shows_what_ran_and_how_it_compares() -> None:
    timeline = step()
    written = " ".join(words(step_gantt(timeline)))
    bubble = sum(rank.waited for rank in timeline.measured) / (STAGES * timeline.seconds)
    assert "gpt, 3 stages" in written
    measured, predicted = timeline.seconds * 1000, timeline.predicted_seconds * 1000
    assert f"step 17: measured {measured:.0f} ms, predicted {predicted:.0f}" in written
    assert f"bubble {bubble:.0%}" in written


def test_bars_carry_their_micro_batch() -> None:
    predicted, _ = step_gantt(step()).axes
    numbers = [each.get_text() for each in predicted.texts if each.get_text().isdigit()]
    assert sorted(numbers) == sorted(str(i) for i in range(MICRO_BATCHES) for _ in range(2 * STAGES))


@pytest.mark.slow
def test_numbers_stay_within_their_bars() -> None:
    figure = step_gantt(step(8, 16))
    predicted, _ = figure.axes
    bars = spans(predicted, r".*-(forward|backward)")
    numbers = [each for each in predicted.texts if each.get_text().isdigit()]
    assert numbers
    for each in numbers:
        box = each.get_window_extent().transformed(predicted.transData.inverted())
        assert any(left <= box.x0 and box.x1 <= left + width for left, width in bars), each.get_text()


@pytest.mark.slow
def test_numbers_are_left_out_where_they_do_not_fit() -> None:
    for axes in step_gantt(step(16, 128)).axes:
        assert len(spans(axes, r".*-forward")) == 16 * 128
        assert not [each for each in axes.texts if each.get_text().isdigit()]


def test_a_single_rank_never_waits() -> None:
    predicted, measured = step_gantt(step(1, 2)).axes
    assert not artists(predicted, r".*-waiting")
    assert "0%" in [each.get_text() for each in measured.texts]


def test_all_kinds_of_work_are_drawn_and_messages_are_not() -> None:
    """Everything that takes time and is not a message is drawn, even sampling, which has no colour."""
    schedule = generation_schedule(range(2), 3)
    busy = {Kind.FORWARD: 1.0, Kind.SAMPLE: 0.5}
    moments = [0.0]
    for action in schedule.workers[1]:
        moments.append(moments[-1] + busy.get(action.kind, 1e-4))
    times = tuple(ActionTimes(a, a, b) for a, b in itertools.pairwise(moments))
    rank = RankTimeline(schedule.workers[1], times)
    _, axes = step_gantt(StepTimeline("t", 1, moments[-1], moments[-1], (rank,), (rank,), 0.0)).axes
    names = {each.get_gid() for each in axes.collections}
    assert names == {"measured-0-forward", "measured-0-sample"}


def test_the_legend_is_within_the_page() -> None:
    """ZB-V has every kind of backward, in two shades each."""
    ranks = []
    for actions in training_schedule("zb_v", 4, 8).workers:
        times = [ActionTimes(at, at + 0.5, at + 1) for at in range(len(actions))]
        ranks.append(RankTimeline(actions, tuple(times), ALL_REDUCES))
    end = float(max(len(rank.actions) for rank in ranks))
    figure = step_gantt(StepTimeline("zb_v", 1, end, end, tuple(ranks), tuple(ranks), 0.0))
    (legend,) = figure.legends
    names = {text.get_text() for text in legend.get_texts()}
    assert {"forward", "backward", "input gradient", "weight gradient", "all-reduce"} < names
    box = legend.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width


def test_a_schedule_is_drawn_as_simulated() -> None:
    schedule = training_schedule("gpipe", 4, 8)
    timeline = simulate(schedule, [1.0] * 4, [2.0] * 4)
    (axes,) = schedules_gantt([(schedule, timeline)], "GPipe").axes
    assert spans(axes, "gpipe-2-backward") == [pytest.approx((13 + 2 * i, 2)) for i in range(8)]
    written = [each.get_text() for each in axes.texts]
    assert "gpipe: bubble 27%" in written  # (p - 1) / (m + p - 1)
    assert written.count("max 8") == 4
