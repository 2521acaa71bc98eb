"""The data that a run of a schedule reads: this replica's micro-batches, numbered from 0."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence

from torch import Tensor

from trainer.activation import Activation


class Source(ABC):
    """The micro-batches of one run of a schedule."""

    @abstractmethod
    def signatures(self) -> Sequence[Hashable]:
        """Return, for every micro-batch, what determines the shapes of its activations (first stage)."""

    @abstractmethod
    def inputs(self, micro_batch: int) -> Activation:
        """Return the inputs of the first layer (first stage)."""

    @abstractmethod
    def targets(self, micro_batch: int) -> Activation:
        """Return the targets of the loss, or None where there is no loss (last stage)."""


class TokenSource(Source):
    """Texts that grow: each micro-batch's output gives the next tokens. Schedules that SAMPLE need one."""

    @abstractmethod
    def sample(self, micro_batch: int, output: Activation) -> Tensor:
        """Return the tokens that follow the last layer's output, one for each row (last stage)."""

    @abstractmethod
    def append(self, micro_batch: int, tokens: Tensor) -> None:
        """Append these tokens to the texts (first stage)."""
