"""What one rank asks of all ranks at the end of a step, agreed in messages that a step sends anyway.

A rank that stopped by itself would leave the others waiting. So every rank must know of a request in the same
step. A step has two exchanges, and a request takes both of them:

    of the replicas    between the last stages, at the beginning of a step: the loss's terms are counted
    of the pipeline    between the stages of a replica, at the end of a step: gradient norms

[1] at the end of a step, the last stage learns what the ranks of its pipeline ask for
[2] at the beginning of the next, all last stages learn what each of them knows
[3] at its end, every rank learns what the last stages know: that is agreed, the same on all ranks

With one replica, [1] is enough.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Request:
    """What is to be done at the end of a step.

    Attributes:
        stop: The signal because of which the run should save and stop; 0 for none.
        save: Whether a checkpoint is due.
    """

    stop: int = 0
    save: bool = False


class Requests:
    """One rank's part in the agreement.

    Args:
        replicas: Their number.

    Attributes:
        ask: Returns what this rank asks for, again and again until it is done.
        agreed: What all ranks have agreed on, as of the last step.
    """

    NUMBERS = 2  # that stand for a request

    def __init__(self, replicas: int) -> None:
        self.ask: Callable[[], Request] = Request
        self.agreed = Request()
        self._replicas = replicas
        self._pipeline = np.zeros(self.NUMBERS, dtype=np.int64)  # [1]
        self._last_stages = np.zeros(self.NUMBERS, dtype=np.int64)  # [2]

    def for_replicas(self) -> list[int]:
        """Return the numbers that a rank with the last stage sends to the others."""
        return [int(n) for n in np.maximum(self._pipeline, self._own())]

    def from_replicas(self, rows: _Numbers) -> None:
        """Take the numbers of all ranks with the last stage, a row each."""
        self._last_stages = rows.max(axis=0)

    def for_pipeline(self) -> list[int]:
        """Return the numbers that a rank sends to the others of its pipeline."""
        return [*self._own(), *(int(n) for n in self._last_stages)]

    def from_pipeline(self, rows: _Numbers) -> None:
        """Take the numbers of all ranks of the pipeline, a row each."""
        asked, known = np.split(rows.max(axis=0), 2)
        self._pipeline = asked
        stop, save = np.maximum(asked, known) if self._replicas == 1 else known
        self.agreed = Request(int(stop), bool(save))

    def saved(self) -> None:
        """Forget who asked for a checkpoint: all ranks have just saved one."""
        self._pipeline[1] = 0

    def _own(self) -> tuple[int, int]:
        asked = self.ask()
        return asked.stop, int(asked.save)
