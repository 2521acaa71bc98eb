"""Observers of a run: whatever watches training without taking part in it.

The training loop names none of them. The run's folder, the display, the trace and the forecast are observers;
so are loggers (`trainer.metrics.loggers`) and callbacks of the user's.

Every rank has the same observers and calls them at the same points of the run, in the order of their list, so
an observer may communicate with the other ranks, as long as it does so on all of them.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.evaluation import Validation
from trainer.run import Run
from trainer.step import StepResult

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Beginning:
    """Where a run begins.

    Attributes:
        step: The number of steps done before.
        steps: The number of the last step.
        origin: In words, what it starts from, such as ", resumed after step 3"; empty for new weights.
    """

    step: int
    steps: int
    origin: str = ""


class RunObserver:
    """Watches a run. Override what is of interest: every method does nothing by default."""

    def begin(self, run: Run, beginning: Beginning) -> None:
        """Called before the first step."""

    def step(self, result: StepResult) -> None:
        """Called after every step."""

    def validation(self, step: int, result: Validation) -> None:
        """Called after every validation, with the mean loss and the metrics on the validation samples."""

    def checkpoint(self, step: int, path: Path) -> None:
        """Called after every checkpoint.

        It is complete on the ranks of the first replica, which write it; the others do not wait for them.
        """

    def message(self, text: str) -> None:
        """Called with whatever a person should read: whole lines."""

    def end(self) -> None:
        """Called after the last step, validation and checkpoint."""

    def failure(self, error: BaseException) -> None:
        """Called on a rank whose run ends with an error, just before it ends."""


class Observers(RunObserver):
    """Several observers as one.

    Args:
        observers: They are called in this order.
    """

    def __init__(self, observers: Sequence[RunObserver]) -> None:
        self._observers = tuple(observers)

    def begin(self, run: Run, beginning: Beginning) -> None:
        """Pass it on."""
        for observer in self._observers:
            observer.begin(run, beginning)

    def step(self, result: StepResult) -> None:
        """Pass it on."""
        for observer in self._observers:
            observer.step(result)

    def validation(self, step: int, result: Validation) -> None:
        """Pass it on."""
        for observer in self._observers:
            observer.validation(step, result)

    def checkpoint(self, step: int, path: Path) -> None:
        """Pass it on."""
        for observer in self._observers:
            observer.checkpoint(step, path)

    def message(self, text: str) -> None:
        """Pass it on."""
        for observer in self._observers:
            observer.message(text)

    def end(self) -> None:
        """Pass it on."""
        for observer in self._observers:
            observer.end()

    def failure(self, error: BaseException) -> None:
        """Pass it on; an observer that fails itself does not hide the error from the others."""
        for observer in self._observers:
            try:
                observer.failure(error)
            except Exception:
                _log.exception("%s failed in its turn", type(observer).__name__)
