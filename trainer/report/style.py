"""The style of all figures: fonts, colours that colour-blind people can distinguish, output files."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from trainer.errors import UserError
from trainer.schedule.actions import RECEIVES, SENDS, Kind

FORMATS = ("png", "svg")
INK, FAINT, LINE = "#1b1f24", "#59636e", "#c9ced6"  # text; secondary text; axes
RUNS = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#b8860b", "#56b4e9", "#7f7f7f")  # one for each run
BAD = "#c1121f"

_DOTS_PER_INCH = 150
_MIDDLE = 0.45  # above this relative luminance, dark text reads better than white


class Look(NamedTuple):
    """The look of a kind of action: its name in the legend, and two shades for neighbours."""

    name: str
    shades: tuple[str, str]


# Blue and orange differ for every kind of colour vision, and in greyscale (hues of Okabe and Ito, 2008).
_LOOKS = {
    Kind.FORWARD: Look("forward", ("#2a6fb0", "#4f92cf")),
    Kind.BACKWARD: Look("backward", ("#f0a030", "#f8c477")),
    Kind.BACKWARD_INPUT: Look("input gradient", ("#f0a030", "#f8c477")),
    Kind.BACKWARD_WEIGHT: Look("weight gradient", ("#44aa99", "#7cc7bb")),
    Kind.UPDATE: Look("optimizer step", ("#8e3b86", "#8e3b86")),
}
OTHER = Look("messages, averaging", ("#8a929c", "#8a929c"))
ALL_REDUCE = Look("all-reduce", ("#009e73", "#009e73"))
_MESSAGES = SENDS | RECEIVES | {Kind.REDUCE_START, Kind.REDUCE_WAIT}
# Kinds without a look above get one of these.
_MORE = (("#d55e00", "#eb8a48"), ("#ded23a", "#efe780"), ("#332288", "#6a5fae"))


def look_of(kind: Kind) -> Look:
    """Return the look of a kind of action; all communication shares `OTHER`."""
    if kind in _LOOKS:
        return _LOOKS[kind]
    if kind in _MESSAGES:
        return OTHER
    unnamed = [each for each in Kind if each not in _LOOKS and each not in _MESSAGES]
    return Look(kind.name.lower().replace("_", " "), _MORE[unnamed.index(kind) % len(_MORE)])


def text_colour(background: str) -> str:
    """Return white or dark ink, whichever reads better on a colour."""
    red, green, blue = to_rgb(background)
    return INK if 0.2126 * red + 0.7152 * green + 0.0722 * blue > _MIDDLE else "white"


def mixed_with_white(colour: str, share: float) -> tuple[float, float, float]:
    """Mix a colour with white; `share` is the share of the colour."""
    red, green, blue = (1 - share * (1 - part) for part in to_rgb(colour))
    return red, green, blue


@contextmanager
def house_style() -> Iterator[None]:
    """Draw in our style within the context, independent of the user's matplotlibrc."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams["font.size"] = 9
        mpl.rcParams["hatch.linewidth"] = 0.6
        mpl.rcParams["svg.hashsalt"] = "trainer"  # makes the ids in an SVG reproducible
        for part in ("text.color", "axes.labelcolor", "xtick.color", "ytick.color"):
            mpl.rcParams[part] = INK
        yield


def new_figure(width: float, height: float) -> Figure:
    """Return an empty white figure; width and height are in inches."""
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def clean(axes: Axes) -> None:
    """Remove the sides of the frame that have no ticks."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(LINE)
    axes.tick_params(color=LINE, labelsize=8)


def save(figure: Figure, path: Path, formats: Sequence[str]) -> list[Path]:
    """Write a figure in every format, with reproducible bytes; return the files.

    Args:
        figure: The figure.
        path: The path of the files, without the extension.
        formats: Some of `FORMATS`.

    Raises:
        UserError: A file cannot be written.
    """
    written = []
    for ending in formats:
        file = path.with_name(f"{path.name}.{ending}")
        # Without date and version, a figure in a repository changes only when its content does.
        metadata = {"Date": None, "Creator": None} if ending == "svg" else {"Software": None}
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with house_style():
                figure.savefig(file, format=ending, dpi=_DOTS_PER_INCH, metadata=metadata)
        except OSError as error:
            raise UserError(f"{file} cannot be written: {error}") from error
        written.append(file)
    return written
