"""What the watch learns from a run: where its folder is, and how long a step usually takes."""

from collections import deque
from statistics import median

from trainer.metrics.folder import RunFolder
from trainer.metrics.observer import Beginning, RunObserver
from trainer.run import Run
from trainer.step import StepResult
from trainer.watch.start import place_run, settings

_USUAL = 16  # steps


class Watchdog(RunObserver):
    """Keeps the watch informed.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._seconds: deque[float] = deque(maxlen=_USUAL)

    def begin(self, run: Run, beginning: Beginning) -> None:
        """Name the folder."""
        place_run(self._folder.path)

    def step(self, result: StepResult) -> None:
        """Update the usual step, of the latest."""
        self._seconds.append(result.seconds)
        if (known := settings()) is not None:
            known.usual = median(self._seconds)
