"""`python -m trainer.report RUN [RUN ...]`: draws charts of runs, from the files in their folders.

It draws curves over the steps (of several runs in one figure, to compare layouts), and for each run a Gantt
chart of one step, predicted and measured.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from trainer.errors import EXIT_USER_ERROR, UserError
from trainer.report.curves import curves
from trainer.report.gantt import step_gantt
from trainer.report.read import RunRecord, read_run
from trainer.report.style import FORMATS, save


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the charts that the command line asks for; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", nargs="+", type=Path, metavar="RUN", help="the folder of a run")
    parser.add_argument("--out", type=Path, help="output folder (default: report/ in the first RUN)")
    parser.add_argument("--format", nargs="+", choices=FORMATS, default=FORMATS, help="default: all")
    given = parser.parse_args(arguments)
    try:
        runs = [read_run(path) for path in given.run]
        names = _names([run.path for run in runs])
        print(_summary(runs, names))
        for file in _draw(runs, names, given.out or given.run[0] / "report", given.format):
            print(f"drawn: {file}")
    except UserError as error:
        print(f"trainer: error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    return 0


def _draw(
    runs: Sequence[RunRecord], names: Sequence[str], folder: Path, formats: Sequence[str]
) -> list[Path]:
    """Draw all charts; a run without a timeline has no Gantt chart."""
    alone = len(runs) == 1
    files = save(curves(runs, names), folder / ("curves" if alone else "comparison"), formats)
    for run, name in zip(runs, names, strict=True):
        if run.timeline is not None:
            gantt = "gantt" if alone else f"gantt-{name.strip('/').replace('/', '-')}"
            files += save(step_gantt(run.timeline), folder / gantt, formats)
    return files


def _names(paths: Sequence[Path]) -> list[str]:
    """Return a name for each run: that of its folder, or its path if the names are not distinct."""
    names = [path.resolve().name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _summary(runs: Sequence[RunRecord], names: Sequence[str]) -> str:
    """Return a table with a row for every run, and notes on their files."""
    rows: list[tuple[str, ...]] = [("run", "steps", "loss", "validation", "samples/s", "bubble", "predicted")]
    notes = []
    for run, name in zip(runs, names, strict=True):
        losses = run.numbers["loss"]
        validation = f"{run.validations[-1][1]:.4f}" if run.validations else "-"
        rate = run.median("samples_per_second")
        bubbles = [_percent(run.median(number)) for number in ("bubble", "bubble_predicted")]
        speed = "-" if math.isnan(rate) else f"{rate:,.1f}"
        rows.append(
            (name, f"{len(run.steps):,}", f"{losses[0]:.4f} -> {losses[-1]:.4f}", validation, speed, *bubbles)
        )
        if run.torn:
            notes.append(f"note: {name}: skipped the last line of metrics.jsonl, which is cut off")
        if run.timeline is None:
            notes.append(f"note: {name}: no timeline.json, so no Gantt chart; a run writes it when it ends")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])]).rstrip()
        for cells in rows
    ]
    return "\n".join([*lines, "(samples/s and bubbles: medians over the steps)", *notes])


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{share:.0%}"


if __name__ == "__main__":
    raise SystemExit(main())
