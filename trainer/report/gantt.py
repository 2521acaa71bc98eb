"""Gantt charts: a measured step below its prediction, and simulated schedules.

`_page` lays out a page from top to bottom:

    title: the headline of the run
    step 17: measured 812 ms, predicted 790 ms (+3%); ...

    predicted ...                                        waits
    rank 0  [0][1][2][3]///////[ 0 ][4][ 1 ]...            22%
    rank 1  ///[0][1][2]///[ 0 ][3][ 1 ]...                22%

    measured ...                                         waits
    rank 0  ...

    legend; how to read it
"""

import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.legend_handler import HandlerTuple
from matplotlib.patches import Patch

from trainer.metrics.timeline import StepTimeline
from trainer.report.panel import WAITING, Panel, draw_panel, fit, row_names
from trainer.report.style import ALL_REDUCE, FAINT, OTHER, Look, house_style, new_figure
from trainer.schedule.actions import Kind, Schedule
from trainer.schedule.peak_memory import peak_live
from trainer.schedule.timeline import RankTimeline, Timeline

_MILLISECONDS = 1000.0

# The page, in inches.
_WIDTH, _WIDEST = 12.0, 16.0
_MICRO_BATCHES_OF_WIDTH = 12  # with more, the page grows
_EDGE, _RIGHT, _COLUMN = 0.3, 0.95, 0.8
_TALL_ROW, _ALL_ROWS, _LEAST_ROW = 0.44, 5.0, 0.16  # a row at most; all rows of a panel; a row at least
_HEADING, _AXIS, _LEGEND = 0.52, 0.48, 0.34
_TITLE_SIZE, _SUBTITLE_SIZE, _LABEL_SIZE, _CAPTION_SIZE, _LEGEND_SIZE = 12.0, 10.0, 8.0, 8.5, 9.0  # points
_LINE = 1.45 / 72  # the height of a line, in inches per point of font size
_CHARACTER, _BOLD = 0.0071, 0.0079  # the mean width of a character, in inches per point of font size


@house_style()
def step_gantt(timeline: StepTimeline) -> Figure:
    """Return a figure of one step of a group: predicted above measured, on one axis of milliseconds."""
    seconds, predicted = timeline.seconds, timeline.predicted_seconds
    bubble, predicted_bubble = _bubble(timeline.measured, seconds), _bubble(timeline.predicted, predicted)
    headings = (
        f"predicted by simulating the same lists of actions: {_ms(predicted)}, bubble {predicted_bubble:.0%}",
        f"measured: {_ms(seconds)}, bubble {bubble:.0%}",
    )
    panels = [
        _panel("predicted", headings[0], timeline.predicted, predicted),
        _panel("measured", headings[1], timeline.measured, seconds),
    ]
    longer = f" ({seconds / predicted - 1:+.0%})" if predicted else ""
    subtitle = (
        f"step {timeline.step}: measured {_ms(seconds)}, predicted {_ms(predicted)}{longer}; "
        f"bubble: measured {bubble:.0%}, predicted {predicted_bubble:.0%}"
    )
    note = (
        "White is time outside of actions, such as reading data. "
        f"The ranks' clocks agree to {timeline.clock_error * 1e6:,.0f} µs."
    )
    return _page(timeline.title, subtitle, panels, "milliseconds since the step began", note)


@house_style()
def schedules_gantt(
    simulated: Sequence[tuple[Schedule, Timeline]], title: str, unit: str = "time, in forwards of one stage"
) -> Figure:
    """Return a figure of simulated schedules, one above another, on one time axis.

    Args:
        simulated: The schedules, and their simulated times.
        title: The title of the page.
        unit: The label of the axis, with the unit of the simulated times.
    """
    panels = []
    for schedule, timeline in simulated:
        end, makespan = timeline.seconds, timeline.makespan
        waits = [f"{max(makespan - sum(busy), 0) / end if end else 0:.0%}" for busy in timeline.busy]
        columns = {"waits": waits}
        if any(kept := peak_live(schedule)):
            columns["live"] = [f"max {peak}" for peak in kept]
        heading = f"{schedule.name}: bubble {max(timeline.bubble, 0):.0%}"
        panels.append(Panel(schedule.name, heading, timeline.by_rank(schedule), end, 1.0, columns))
    live = '"live" is the largest number of micro-batches whose saved tensors a rank holds at one time.'
    note = live if any("live" in panel.columns for panel in panels) else ""
    return _page(title, "", panels, unit, note)


def _panel(name: str, heading: str, ranks: Sequence[RankTimeline], end: float) -> Panel:
    waits = [f"{_bubble([rank], end):.0%}" for rank in ranks]
    return Panel(name, heading, ranks, end, _MILLISECONDS, {"waits": waits})


def _bubble(ranks: Sequence[RankTimeline], seconds: float) -> float:
    """Return the share of the ranks' time in which they waited."""
    total = len(ranks) * seconds
    return max(sum(rank.waited for rank in ranks) / total, 0.0) if total else 0.0


def _ms(seconds: float) -> str:
    milliseconds = seconds * _MILLISECONDS
    return f"{milliseconds:,.0f} ms" if milliseconds >= 100 else f"{milliseconds:.3g} ms"  # noqa: PLR2004


def _page(title: str, subtitle: str, panels: Sequence[Panel], unit: str, note: str) -> Figure:
    """Lay out the page from top to bottom, in inches."""
    micro_batches = max((len(_micro_batches(panel)) for panel in panels), default=0)
    width = min(_WIDTH * max(1.0, (micro_batches / _MICRO_BATCHES_OF_WIDTH) ** 0.5), _WIDEST)
    left = _EDGE + _CHARACTER * _LABEL_SIZE * max(len(name) for panel in panels for name in row_names(panel))
    inside = width - left - _RIGHT - _COLUMN * (max(len(panel.columns) for panel in panels) - 1)
    row = max(min(_TALL_ROW, _ALL_ROWS / max(len(panel.ranks) for panel in panels)), _LEAST_ROW)
    titles = _wrap(title, (width - 2 * _EDGE) / (_BOLD * _TITLE_SIZE))
    caption = _wrap(f"{_how_to_read(panels)}{note}", inside / (_CHARACTER * _CAPTION_SIZE))
    subtitle_at = 0.22 + len(titles) * _LINE * _TITLE_SIZE
    top = subtitle_at + (_LINE * _SUBTITLE_SIZE if subtitle else 0.0)
    bottom = top + sum(_HEADING + row * len(panel.ranks) for panel in panels) + _AXIS
    height = bottom + _LEGEND + len(caption) * _LINE * _CAPTION_SIZE + 0.15

    figure = new_figure(width, height)

    def write(text: str, x: float, y: float, **font: Any) -> None:
        figure.text(x / width, 1 - y / height, text, va="top", linespacing=1.35, **font)

    write("\n".join(titles), _EDGE, 0.2, size=_TITLE_SIZE, weight="bold")
    write(subtitle, _EDGE, subtitle_at, size=_SUBTITLE_SIZE)
    write("\n".join(caption), left, bottom + _LEGEND, size=_CAPTION_SIZE, color=FAINT)
    last = max(panel.last for panel in panels) or 1.0
    scale = fit(panels, 72 * inside, last, 72 * row)
    looks: dict[str, Look] = {}
    y = top
    for panel in panels:
        tall = row * len(panel.ranks)
        y += _HEADING + tall
        axes = figure.add_axes((left / width, 1 - y / height, inside / width, tall / height))
        axes.set_xlim(0, last)
        looks |= {look.name: look for look in draw_panel(axes, panel, scale)}
    axes.set_xlabel(unit, size=9)
    _legend(figure, list(looks.values()), (left / width, 1 - bottom / height))
    return figure


def _legend(figure: Figure, looks: Sequence[Look], place: tuple[float, float]) -> None:
    order = [look for look in looks if look not in (OTHER, ALL_REDUCE)]
    order += [look for look in (ALL_REDUCE, OTHER) if look in looks]
    handles: list[Any] = [tuple(Patch(color=shade) for shade in dict.fromkeys(look.shades)) for look in order]

    def draw(size: float) -> Legend:
        return figure.legend(
            [*handles, Patch(**WAITING)],
            [*(look.name for look in order), "waiting for another rank"],
            handler_map={tuple: HandlerTuple(ndivide=None, pad=0.0)},
            loc="upper left",
            bbox_to_anchor=place,
            ncols=len(order) + 1,
            frameon=False,
            borderpad=0,
            borderaxespad=0,
            handlelength=2.2,
            fontsize=size,
        )

    legend = draw(_LEGEND_SIZE)
    width = legend.get_window_extent().width / figure.bbox.width
    available = 1 - place[0] - _EDGE / figure.get_figwidth()
    if width > available:  # a schedule with every kind of action needs a long legend
        legend.remove()
        draw(_LEGEND_SIZE * available / width)


def _how_to_read(panels: Sequence[Panel]) -> str:
    ranks = [rank for panel in panels for rank in panel.ranks]
    several = any(len({action.stage for action in rank.actions}) > 1 for rank in ranks)
    holds, shade = ("stages", "Shades distinguish a rank's stages. ") if several else ("stage", "")
    reduces = "A green line below a row is an all-reduce of gradients over the replicas. "
    return (
        "How to read: time runs to the right. Each row is one rank of a model-parallel group, with the "
        f"{holds} that it holds. A blue bar is the forward of one micro-batch, an orange bar its backward, "
        f"each with the micro-batch's number where it fits. {shade}Hatching marks time spent waiting for "
        'another rank: the bubble is the hatched share of all rows, and "waits" is that of each row. '
        + (reduces if any(rank.all_reduces for rank in ranks) else "")
    )


def _micro_batches(panel: Panel) -> set[int]:
    return {a.micro_batch for rank in panel.ranks for a in rank.actions if a.kind is Kind.FORWARD}


def _wrap(text: str, characters: float) -> list[str]:
    return textwrap.wrap(text, max(int(characters), 20), break_on_hyphens=False)
