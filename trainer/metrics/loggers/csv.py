"""`logger=[csv]`: the numbers of steps and validations as `metrics.csv`, for spreadsheets and plots."""

import csv
import io
from collections.abc import Collection

from trainer.evaluation import Validation
from trainer.metrics.folder import RunFolder
from trainer.metrics.observer import Beginning, RunObserver
from trainer.run import Run
from trainer.step import StepResult

COLUMNS = ("step", "loss", "grad_norm", "lr", "step_seconds", "bubble", "val_loss")


class CsvLogger(RunObserver):
    """Writes a row for every step and every validation; a resumed run appends.

    Args:
        folder: The run's folder; rank 0 writes into it.
        metrics: The names of what validations report.
        writes: Whether this rank is the one that writes.
    """

    def __init__(self, folder: RunFolder, metrics: Collection[str], writes: bool) -> None:
        self._folder = folder
        self._path = folder.path / "metrics.csv"
        self._metrics = tuple(metrics)
        self._writes = writes

    def begin(self, run: Run, beginning: Beginning) -> None:
        """Write the header, unless the file has one."""
        if self._writes and not self._path.exists():
            self._append((*COLUMNS, *(f"val_{name}" for name in self._metrics)))

    def step(self, result: StepResult) -> None:
        """Write a step's numbers."""
        summary = result.summary
        numbers = (summary.loss, summary.grad_norm, result.lr, result.seconds, result.bubble)
        self._append((result.step, *map(repr, numbers), "", *("" for _ in self._metrics)))

    def validation(self, step: int, result: Validation) -> None:
        """Write a validation's loss and metrics."""
        metrics = (repr(result.metrics[name]) if name in result.metrics else "" for name in self._metrics)
        self._append((step, "", "", "", "", "", repr(result.loss), *metrics))

    def _append(self, row: tuple[object, ...]) -> None:
        if self._writes:
            text = io.StringIO()
            csv.writer(text).writerow(row)
            self._folder.append_text(self._path.name, text.getvalue())


def build(run: Run, folder: RunFolder) -> RunObserver:
    """Return the logger of a rank."""
    return CsvLogger(folder, run.metrics.functions, writes=run.world.rank == 0)
