"""One panel of a Gantt chart: a row for every rank, a bar for every action, hatched where a rank waits."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from matplotlib.axes import Axes

from trainer.report.style import ALL_REDUCE, FAINT, LINE, OTHER, Look, clean, look_of, text_colour
from trainer.schedule.timeline import AllReduce, RankTimeline, lanes

WAITING: dict[str, Any] = {"facecolor": "#f6f7f8", "edgecolor": "#ccd1d8", "hatch": "/////", "linewidth": 0.0}
WAIT = "waiting"

# Parts of a row of height 1. All-reduces, if any, have a strip below the bars.
_BAR, _BAR_ABOVE_STRIP, _STRIP = 0.78, 0.6, 0.26
_SHORTEST, _SHORTEST_WAIT = 0.002, 0.0005  # shortest message and wait that are drawn, as shares of the axis
_DIGIT, _ROOM = 0.64, 0.86  # width of a digit in font sizes; share of a bar that a number may fill
_LARGEST_FONT, _SMALLEST_FONT = 8.5, 4.5  # points
_FIT = 0.8  # the bars of a look have numbers if the numbers fit into this share of them


@dataclass(frozen=True)
class Panel:
    """The content of a panel.

    Attributes:
        name: A word that the names of the panel's artists begin with.
        heading: The heading above the panel.
        ranks: The timeline of each rank.
        end: The end of the step, in seconds (or in the unit of the ranks' times).
        scale: Units of the axis per second.
        columns: Columns to the right of the rows: heading -> a text for every rank.
    """

    name: str
    heading: str
    ranks: Sequence[RankTimeline]
    end: float
    scale: float
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def last(self) -> float:
        """Return the end of the panel, in units of the axis."""
        ends = (moment for rank in self.ranks for moment in _ends(rank))
        return max([self.end, *ends]) * self.scale


class Bar(NamedTuple):
    """A bar, in units of the axis."""

    left: float
    width: float
    colour: str
    text: str


class Scale(NamedTuple):
    """The scale that all panels of a page share.

    Attributes:
        time: The length of a unit of the axis, in points (1/72 inch).
        row: The height of a row, in points.
        strip: Whether rows leave room for all-reduces below the bars.
        fonts: The size of the numbers in bars, by the look's name; looks without an entry have no numbers.
    """

    time: float
    row: float
    strip: bool
    fonts: Mapping[str, float]

    @property
    def bar(self) -> tuple[float, float]:
        """Return the top of a bar, relative to the middle of its row, and its height."""
        return (-(_BAR_ABOVE_STRIP + _STRIP) / 2, _BAR_ABOVE_STRIP) if self.strip else (-_BAR / 2, _BAR)


def fit(panels: Sequence[Panel], width: float, last: float, row: float) -> Scale:
    """Return the scale at which panels fit.

    Args:
        panels: All panels of a page.
        width: The width of the axis, in points.
        last: The end of the axis, in its units.
        row: The height of a row, in points.
    """
    strip = any(rank.all_reduces for panel in panels for rank in panel.ranks)
    scale = Scale(width / last, row, strip, {})
    by_look: defaultdict[str, list[tuple[float, str]]] = defaultdict(list)
    for panel in panels:
        for rank in panel.ranks:
            for look, bars in _bars(rank, panel.scale, _SHORTEST * last).items():
                by_look[look.name] += [(bar.width * scale.time, bar.text) for bar in bars if bar.text]
    fonts = {name: _font(bars, 0.62 * row * scale.bar[1]) for name, bars in by_look.items() if bars}
    return scale._replace(fonts={name: size for name, size in fonts.items() if size >= _SMALLEST_FONT})


def _font(bars: Sequence[tuple[float, str]], height: float) -> float:
    """Return the font size in points at which numbers fit most bars, given as widths and texts."""
    sizes = sorted(_ROOM * width / (_DIGIT * len(text)) for width, text in bars)
    return min(_LARGEST_FONT, height, max(sizes[int((1 - _FIT) * len(sizes))], 0.0))


def draw_panel(axes: Axes, panel: Panel, scale: Scale) -> list[Look]:
    """Draw a panel; return the looks that it uses.

    The bars of one rank and look are one artist, with a name (`get_gid`) such as `measured-2-forward`.

    Args:
        axes: The axes to draw into, with their time limits set.
        panel: The panel.
        scale: The scale of the page.
    """
    strips = max((lane + 1 for rank in panel.ranks for lane in lanes(rank.all_reduces)), default=1)
    used: dict[str, Look] = {}
    length = axes.get_xlim()[1]
    offset, height = scale.bar
    for row, rank in enumerate(panel.ranks):
        top, name = row + offset, f"{panel.name}-{row}"
        _draw_waits(axes, name, _waits(rank, panel.scale, _SHORTEST_WAIT * length), (top, height))
        for look, bars in _bars(rank, panel.scale, _SHORTEST * length).items():
            used[look.name] = look
            _draw_bars(axes, f"{name}-{look.name}", bars, (top, height), scale.time)
            _draw_texts(axes, bars, top + height / 2, scale.fonts.get(look.name, 0.0), scale.time)
        if rank.all_reduces:
            used[ALL_REDUCE.name] = ALL_REDUCE
            _draw_all_reduces(axes, name, rank.all_reduces, panel.scale, (top + height, strips))
    axes.axvline(panel.end * panel.scale, color=FAINT, linewidth=0.9, linestyle=(0, (4, 3)), zorder=3)
    _dress(axes, panel, offset + height / 2)
    return list(used.values())


def _ends(rank: RankTimeline) -> Iterable[float]:
    yield from (times.end for times in rank.times[-1:])
    yield from (reduce.end for reduce in rank.all_reduces)


def _waits(rank: RankTimeline, scale: float, shortest: float) -> list[tuple[float, float]]:
    """Return the start and the length of each wait."""
    waits = [(times.start * scale, (times.ready - times.start) * scale) for times in rank.times]
    return [wait for wait in waits if wait[1] > shortest]


def _bars(rank: RankTimeline, scale: float, shortest: float) -> dict[Look, list[Bar]]:
    """Return the bars of every look; very short messages have none."""
    stages = sorted({action.stage for action in rank.actions})
    bars = defaultdict(list)
    for action, times in zip(rank.actions, rank.times, strict=True):
        look, width = look_of(action.kind), (times.end - times.ready) * scale
        if width <= (shortest if look is OTHER else 0.0):
            continue
        # The shade distinguishes a rank's stages if it holds several, else neighbouring micro-batches.
        shade = stages.index(action.stage) if len(stages) > 1 else action.micro_batch
        text = "" if look is OTHER or action.micro_batch < 0 else str(action.micro_batch)
        bars[look].append(Bar(times.ready * scale, width, look.shades[shade % 2], text))
    return bars


def _draw_waits(
    axes: Axes, name: str, waits: Sequence[tuple[float, float]], where: tuple[float, float]
) -> None:
    if waits:
        axes.broken_barh(waits, where, **WAITING, zorder=1).set_gid(f"{name}-{WAIT}")


def _draw_bars(axes: Axes, name: str, bars: list[Bar], where: tuple[float, float], points: float) -> None:
    # A white edge separates neighbours; it must not hide the narrowest bar.
    edge = min(0.8, 0.12 * points * min(bar.width for bar in bars))
    artist = axes.broken_barh(
        [(bar.left, bar.width) for bar in bars],
        where,
        facecolors=[bar.colour for bar in bars],
        edgecolors="white",
        linewidth=edge,
        zorder=2,
    )
    artist.set_gid(name.replace(", ", "-").replace(" ", "-"))


def _draw_texts(axes: Axes, bars: list[Bar], middle: float, size: float, points: float) -> None:
    """Write the micro-batch into every bar where it fits; size 0 writes nothing."""
    for bar in bars if size > 0 else ():
        if len(bar.text) * _DIGIT * size <= bar.width * points:
            x, colour = bar.left + bar.width / 2, text_colour(bar.colour)
            axes.text(x, middle, bar.text, size=size, color=colour, ha="center", va="center_baseline")


def _draw_all_reduces(
    axes: Axes, name: str, all_reduces: Sequence[AllReduce], scale: float, strip: tuple[float, int]
) -> None:
    top, strips = strip
    height = _STRIP * 0.8 / strips
    by_lane = defaultdict(list)
    for reduce, lane in zip(all_reduces, lanes(all_reduces), strict=True):
        by_lane[lane].append((reduce.start * scale, (reduce.end - reduce.start) * scale))
    for lane, spans in by_lane.items():
        where = (top + _STRIP * 0.2 + lane * height, height * 0.8)
        artist = axes.broken_barh(spans, where, facecolors=ALL_REDUCE.shades[0], linewidth=0, zorder=2)
        artist.set_gid(f"{name}-{ALL_REDUCE.name}-{lane}")


def _dress(axes: Axes, panel: Panel, middle: float) -> None:
    """Write the heading, row names and columns; `middle` is that of the bars in a row."""
    clean(axes)
    rows = len(panel.ranks)
    axes.set_ylim(rows - 0.45, -0.55)
    axes.set_yticks([row + middle for row in range(rows)], row_names(panel))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=LINE, linewidth=0.5, alpha=0.6)
    axes.set_axisbelow(True)
    axes.annotate(
        panel.heading,
        (0, 1),
        (0, 5),
        xycoords="axes fraction",
        textcoords="offset points",
        size=10,
        weight="bold",
    )
    for column, (heading, texts) in enumerate(panel.columns.items()):
        right = 46 + 58 * column  # points from the axes
        style: dict[str, Any] = {"textcoords": "offset points", "ha": "right", "size": 8.5}
        axes.annotate(heading, (1, 1), (right, 5), xycoords="axes fraction", color=FAINT, **style)
        for row, text in enumerate(texts):
            at = ("axes fraction", "data")
            axes.annotate(text, (1, row + middle), (right, 0), xycoords=at, va="center", **style)


def row_names(panel: Panel) -> list[str]:
    """Return the name of each row."""
    names = []
    for row, rank in enumerate(panel.ranks):
        stages = sorted({action.stage for action in rank.actions})
        holds = f": stage{'s' if len(stages) > 1 else ''} {', '.join(map(str, stages))}" if stages else ""
        names.append(f"rank {row}{holds}")
    return names
