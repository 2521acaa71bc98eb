"""Curves over the steps of one run, or of several to compare: small panels that share the step axis."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, StrMethodFormatter
from numpy.typing import NDArray

from trainer.report.read import RunRecord
from trainer.report.style import BAD, FAINT, LINE, RUNS, clean, house_style, mixed_with_white, new_figure

_WIDTH, _HEAD, _RUN, _PANELS = 12.0, 0.85, 0.21, 8.2  # inches: the page, its head, a run there, the panels
_FEW = 30  # up to this number of steps, each has a dot
_MANY = 120  # from this number of steps on, a running median is drawn over the pale steps
_WINDOWS, _LARGEST_WINDOW = 40, 51  # a running median takes 1/40 of the steps, at most 51
_PREDICTED = (0, (4, 2))  # dashes
_SPREAD = 50.0  # above this ratio of largest to smallest, an axis is logarithmic
_PALEST = 0.35
_RANKS_IN_LEGEND = 8
_UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))

_Numbers = NDArray[np.float64]


@house_style()
def curves(runs: Sequence[RunRecord], names: Sequence[str]) -> Figure:
    """Return a figure of the metrics that the runs measured at each step.

    Args:
        runs: The runs, at least one.
        names: Their names in the legend.
    """
    height = _HEAD + _RUN * (len(runs) + 1) + _PANELS
    figure = new_figure(_WIDTH, height)
    grid = figure.subplots(3, 2, sharex=True)
    top, bottom = _PANELS / height, 0.6 / height
    figure.subplots_adjust(left=0.075, right=0.97, top=top, bottom=bottom, hspace=0.3, wspace=0.2)
    (loss, throughput), (norm, bubble), (memory, rate) = grid
    _loss(loss, runs)
    _over_steps(throughput, runs, "samples_per_second", "throughput: samples per second")
    _from_zero(throughput)
    throughput.yaxis.set_major_formatter(StrMethodFormatter("{x:,.6g}"))
    _over_steps(norm, runs, "grad_norm", "gradient norm, before clipping")
    _logarithmic_if_wide(norm, runs, "grad_norm")
    _bubble(bubble, runs)
    _memory(memory, runs)
    _over_steps(rate, runs, "lr", "learning rate", smooth=False)
    _from_zero(rate)
    rate.yaxis.set_major_formatter(StrMethodFormatter("{x:.3g}"))
    for axes in grid.flat:
        clean(axes)
        axes.grid(color=LINE, linewidth=0.5, alpha=0.6)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for axes in grid[-1]:
        axes.set_xlabel("step")
    first, last = min(min(run.steps) for run in runs), max(max(run.steps) for run in runs)
    room = max((last - first) * 0.02, 0.5)
    loss.set_xlim(first - room, last + room)
    _title(figure, runs, names)
    return figure


def _title(figure: Figure, runs: Sequence[RunRecord], names: Sequence[str]) -> None:
    """Write the heading, and a line for every run in its colour."""
    titles = [run.timeline.title if run.timeline else "" for run in runs]
    lines = [f"{name}: {title}" if title else name for name, title in zip(names, titles, strict=True)]
    height = figure.get_figheight()
    title = "Metrics of a run, step by step" if len(runs) == 1 else f"{len(runs)} runs, step by step"
    figure.text(0.025, 1 - 0.2 / height, title, size=12, weight="bold", va="top")
    handles = [Line2D([], [], color=_colour(i), linewidth=3, label=line) for i, line in enumerate(lines)]
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0.025, 1 - 0.5 / height),
        frameon=False,
        fontsize=9,
        borderpad=0,
        borderaxespad=0,
    )


def _loss(axes: Axes, runs: Sequence[RunRecord]) -> None:
    _over_steps(axes, runs, "loss", "loss")
    validated = False
    for i, run in enumerate(runs):
        points = [(step, value) for step, value in run.validations if math.isfinite(value)]
        if points:
            validated = True
            x, y = zip(*points, strict=True)
            axes.plot(x, y, "o", color=_colour(i), markerfacecolor="white", markeredgewidth=1.4, zorder=4)
    if validated:
        marks = [
            Line2D([], [], color=FAINT, label="training"),
            Line2D([], [], color=FAINT, marker="o", markerfacecolor="white", ls="", label="validation"),
        ]
        _legend(axes, marks)


def _bubble(axes: Axes, runs: Sequence[RunRecord]) -> None:
    _over_steps(axes, runs, "bubble", "bubble: share of the ranks' time spent waiting")
    for i, run in enumerate(runs):
        predicted = _finite(run, "bubble_predicted")
        dash = "_" if len(run.steps) == 1 else ""  # one step has no line
        axes.plot(run.steps, predicted, marker=dash, color=_colour(i), linestyle=_PREDICTED, zorder=2)
    marks = [
        Line2D([], [], color=FAINT, label="measured"),
        Line2D([], [], color=FAINT, linestyle=_PREDICTED, label="predicted"),
    ]
    _legend(axes, marks)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.3g}%"))
    _from_zero(axes)


def _memory(axes: Axes, runs: Sequence[RunRecord]) -> None:
    """Draw a line for every rank of the group, each paler than the one before."""
    largest = max((max(held, default=0.0) for run in runs for held in run.peak_memory), default=0.0)
    unit, size = next((each for each in _UNITS if largest >= each[1]), _UNITS[-1])
    _heading(axes, f"peak memory, {unit}: one line per rank, from dark (first) to pale (last)")
    for i, run in enumerate(runs):
        ranks = max(map(len, run.peak_memory), default=0)
        lines = []
        for rank in range(ranks):
            held = [each[rank] / size if rank < len(each) else math.nan for each in run.peak_memory]
            share = 1 - (1 - _PALEST) * rank / max(ranks - 1, 1)
            colour = mixed_with_white(_colour(i), share)
            lines += axes.plot(run.steps, held, color=colour, marker=_dot(run), label=f"rank {rank}")
        if len(runs) == 1 and lines:
            _legend(axes, lines if ranks <= _RANKS_IN_LEGEND else [lines[0], lines[-1]])
    _from_zero(axes)


def _over_steps(
    axes: Axes, runs: Sequence[RunRecord], number: str, heading: str, *, smooth: bool = True
) -> None:
    """Draw a metric of every run; for many steps, add a running median over the steps themselves."""
    _heading(axes, heading)
    broken = 0
    for i, run in enumerate(runs):
        values, colour = _finite(run, number), _colour(i)
        if len(values) < _MANY or not smooth:
            axes.plot(run.steps, values, color=colour, marker=_dot(run), zorder=3)
        else:
            axes.plot(run.steps, values, color=mixed_with_white(colour, 0.3), linewidth=0.8, zorder=2)
            axes.plot(run.steps, _running_median(values), color=colour, zorder=3)
        at = [
            step
            for step, value in zip(run.steps, run.numbers[number], strict=True)
            if value is not None and not math.isfinite(value)
        ]
        bottom = axes.get_xaxis_transform()
        axes.plot(at, [0.0] * len(at), "x", color=BAD, transform=bottom, clip_on=False, zorder=5)
        broken += len(at)
    if broken:
        text = f"x: not finite at {broken} step{'s' if broken > 1 else ''}"
        axes.set_title(text, loc="right", color=BAD, size=8.5)
    if not any(value is not None for run in runs for value in run.numbers[number]):
        axes.text(0.5, 0.5, "not recorded", color=FAINT, ha="center", transform=axes.transAxes)


def _finite(run: RunRecord, number: str) -> _Numbers:
    """Return a metric at every step, NaN where it is missing or not finite."""
    values = np.array([math.nan if value is None else value for value in run.numbers[number]], dtype=float)
    return np.where(np.isfinite(values), values, math.nan)


def _running_median(values: _Numbers) -> _Numbers:
    """Return the median of the finite values around each step.

    Towards both ends the window shrinks, so that it stays centred.
    """
    half = min(len(values) // _WINDOWS, _LARGEST_WINDOW) // 2
    padded = np.pad(values, half, constant_values=math.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1)
    reach = np.minimum(np.arange(len(values)), np.arange(len(values))[::-1])
    windows = np.where(np.abs(np.arange(-half, half + 1)) <= reach[:, None], windows, math.nan)
    medians = np.full(len(values), math.nan)
    some = np.isfinite(windows).any(axis=1)
    medians[some] = np.nanmedian(windows[some], axis=1)
    return medians


def _logarithmic_if_wide(axes: Axes, runs: Sequence[RunRecord], number: str) -> None:
    values = np.concatenate([_finite(run, number) for run in runs])
    values = values[np.isfinite(values)]
    if len(values) and values.min() > 0 and values.max() > _SPREAD * values.min():
        axes.set_yscale("log")


def _from_zero(axes: Axes) -> None:
    """Start the axis at 0, and leave some room at the top."""
    largest = axes.dataLim.y1  # minus infinity if nothing is drawn
    axes.set_ylim(0, 1.1 * largest if largest > 0 else 1)


def _heading(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", size=9.5, weight="bold")


def _legend(axes: Axes, marks: Sequence[Line2D]) -> None:
    axes.legend(handles=list(marks), frameon=False, fontsize=8, ncols=4, loc="best")


def _colour(run: int) -> str:
    return RUNS[run % len(RUNS)]


def _dot(run: RunRecord) -> str:
    """Return the marker of a step; a line through few steps may be a mere point without markers."""
    return "." if len(run.steps) <= _FEW else ""
