"""What a run of a schedule reads: the micro-batches of this replica, numbered from 0."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence

from torch import Tensor

from trainer.activation import Activation


class Source(ABC):
    """The micro-batches of one run of a schedule."""

    @abstractmethod
    def signatures(self) -> Sequence[Hashable]:
        """Return, for every micro-batch, what the shapes of its activations follow from (first stage)."""

    @abstractmethod
    def inputs(self, micro_batch: int) -> Activation:
        """Return what the first layer takes (first stage)."""

    @abstractmethod
    def targets(self, micro_batch: int) -> Activation:
        """Return what the loss compares with, or None where there is no loss (last stage)."""

    def sample(self, output: Activation) -> Tensor:
        """Return the token that follows the last layer's output (last stage, when generating)."""
        raise NotImplementedError(f"{type(self).__name__} has no tokens to sample")

    def append(self, token: Tensor) -> None:
        """Put a token behind the text so far (first stage, when generating)."""
        raise NotImplementedError(f"{type(self).__name__} has no text to append to")
