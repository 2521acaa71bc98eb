"""A logger, added as a contributor adds one: `logger=[tests.toys.logger:build]`."""

from pathlib import Path

from trainer.evaluation import Validation
from trainer.metrics.folder import RunFolder
from trainer.metrics.observer import Beginning, RunObserver
from trainer.run import Run
from trainer.step import StepResult


class Diary(RunObserver):
    """Writes down every call, on every rank."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def begin(self, run: Run, beginning: Beginning) -> None:
        self._note(f"begin {beginning.step} of {beginning.steps}")

    def step(self, result: StepResult) -> None:
        self._note(f"step {result.step} {result.summary.loss!r}")

    def validation(self, step: int, result: Validation) -> None:
        self._note(f"validation {step} {result.loss!r}")

    def checkpoint(self, step: int, path: Path) -> None:
        self._note(f"checkpoint {step} {path.name} {(path / 'manifest.json').exists()}")

    def end(self) -> None:
        self._note("end")

    def failure(self, error: BaseException) -> None:
        self._note(f"failure {type(error).__name__}")

    def _note(self, line: str) -> None:
        with self._path.open("a") as file:
            file.write(f"{line}\n")


def build(run: Run, folder: RunFolder) -> RunObserver:
    return Diary(folder.path / f"diary{run.world.rank}.txt")
