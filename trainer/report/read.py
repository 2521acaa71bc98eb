"""Reads a run's folder: its metrics, and the step for a Gantt chart."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from trainer.errors import UserError
from trainer.metrics.timeline import StepTimeline

NUMBERS = ("loss", "grad_norm", "lr", "samples_per_second", "bubble", "bubble_predicted")
_MEMORY = "peak_memory_bytes"


@dataclass(frozen=True)
class RunRecord:
    """The metrics in a run's folder.

    Attributes:
        path: The folder.
        steps: The numbers of the steps.
        numbers: Values at every step by the names in `NUMBERS`; None where none was written.
        peak_memory: The bytes of every rank of the group, at every step; empty where none were written.
        validations: Steps and validation losses.
        timeline: One step, action by action; None if the run wrote none.
        torn: Whether the last line of the metrics was cut off, and skipped here.
    """

    path: Path
    steps: Sequence[int]
    numbers: dict[str, list[float | None]]
    peak_memory: Sequence[Sequence[float]]
    validations: Sequence[tuple[int, float]]
    timeline: StepTimeline | None
    torn: bool

    def median(self, name: str) -> float:
        """Return the median of a metric over the steps where it is finite; NaN if there are none."""
        finite = [value for value in self.numbers[name] if value is not None and math.isfinite(value)]
        return median(finite) if finite else math.nan


def read_run(path: Path) -> RunRecord:
    """Read the folder of a run, which may be in progress.

    Raises:
        UserError: It is not the folder of a run, or a file in it is broken.
    """
    metrics = path / "metrics.jsonl"
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; give the folder of a run, such as runs/<time>")
    if not metrics.is_file():
        runs = sorted(str(each.parent) for each in path.glob("*/metrics.jsonl"))
        found = f"; did you mean {' '.join(runs)}?" if runs else "; a run writes it after its first step"
        raise UserError(f"{path} has no metrics.jsonl{found}")
    entries, torn = _entries(metrics)
    steps = [entry for entry in entries if "loss" in entry]
    if not steps:
        raise UserError(f"{metrics} has no step yet; a run writes a line after every step")
    timeline = path / "timeline.json"
    return RunRecord(
        path=path,
        steps=[entry["step"] for entry in steps],
        numbers={
            name: [_number(entry[name]) if name in entry else None for entry in steps] for name in NUMBERS
        },
        peak_memory=[entry.get(_MEMORY, []) for entry in steps],
        validations=[(each["step"], _number(each["val_loss"])) for each in entries if "val_loss" in each],
        timeline=StepTimeline.load(timeline) if timeline.exists() else None,
        torn=torn,
    )


def _number(value: float | None) -> float:
    """Return a number of the metrics; null stands for one that is not finite."""
    return math.nan if value is None else value


def _entries(metrics: Path) -> tuple[list[dict[str, Any]], bool]:
    """Return the objects of the file, and whether its last line was cut off, for instance by a crash."""
    try:
        lines = metrics.read_text().splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{metrics} cannot be read: {error}") from error
    entries: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                return entries, True
            raise UserError(f"{metrics}, line {number}, is not JSON: {error}") from error
        if (problem := _problem(entry)) is not None:
            raise UserError(f"{metrics}, line {number}: {problem}")
        entries.append(entry)
    return entries, False


def _problem(entry: Any) -> str | None:
    """Return what is wrong with an entry; None if it is valid."""
    if not isinstance(entry, dict):
        return f"{entry!r} is not an object with the numbers of a step"
    if not isinstance(entry.get("step"), int):
        return f"step={entry.get('step')!r} is not a step's number"
    for name in (*NUMBERS, "val_loss"):
        if not isinstance(entry.get(name, 0), int | float | None):
            return f"{name}={entry[name]!r} is not a number"
    memory = entry.get(_MEMORY, [])
    if not (isinstance(memory, list) and all(isinstance(each, int | float) for each in memory)):
        return f"{_MEMORY}={memory!r} is not a list of numbers, one for each rank of the group"
    return None
