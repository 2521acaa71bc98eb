"""What data is: samples by number, read apart for the first stage (inputs) and the last (targets)."""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from trainer.activation import Activation


class Dataset(Protocol):
    """Samples, numbered from 0; the same number always gives the same sample, on every rank."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def inputs(self, samples: NDArray[np.int64]) -> Activation:
        """Return what the first layer takes for these samples, the batch in the first dimension."""

    def targets(self, samples: NDArray[np.int64]) -> Activation:
        """Return what the loss compares with for these samples, the batch in the first dimension."""


@dataclass(frozen=True)
class Data:
    """A training and a validation part, and what a model has to know about them.

    Attributes:
        training: The samples that are trained on.
        validation: The samples that are held out.
        fingerprint: A digest of the content; equal on every rank, or the run does not start.
        vocabulary: The number of distinct tokens, or None where samples are not tokens.
        tokenizer: Turns text into tokens and back, or None where samples are not text.
    """

    training: Dataset
    validation: Dataset
    fingerprint: str
    vocabulary: int | None = None
    tokenizer: "Tokenizer | None" = field(default=None, repr=False)


class Tokenizer(Protocol):
    """Turns text into token numbers and back."""

    @property
    def vocabulary(self) -> int:
        """Return the number of distinct tokens."""

    def encode(self, text: str) -> list[int]:
        """Return the token numbers of the text."""

    def decode(self, tokens: list[int]) -> str:
        """Return the text of the token numbers; never raises."""
