"""What a dataset is: numbered samples; the first stage reads their inputs, the last their targets."""

from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.activation import Activation, flatten, map_leaves
from trainer.errors import UserError


class Dataset(Protocol):
    """Samples, numbered from 0; a number gives the same sample every time and on every rank.

    What reads may draw from the global generators of torch, NumPy and Python, to augment samples. These are
    seeded by step and micro-batch, alike for inputs and targets.
    """

    def __len__(self) -> int:
        """Return the number of samples."""

    def inputs(self, samples: NDArray[np.int64]) -> Activation:
        """Return the first layer's inputs for these samples; the first dimension is the batch.

        Tensors, NumPy arrays and plain values, nested as `trainer.activation` allows; arrays become tensors.
        """

    def targets(self, samples: NDArray[np.int64]) -> Activation:
        """Return the loss's targets for these samples; the first dimension is the batch."""


def is_endless(dataset: Dataset) -> bool:
    """Return whether a dataset is a stream without a length."""
    return bool(getattr(dataset, "endless", False))


@dataclass(frozen=True)
class Data:
    """A training part and a validation part, and the facts that a model needs about them.

    Attributes:
        training: The samples to train on.
        validation: The samples that are held out.
        fingerprint: A digest of the content; a run starts only if it is equal on all ranks.
        vocabulary: The number of distinct tokens, or None if samples are not tokens.
        tokenizer: Turns text into tokens and back, or None if samples are not text.
        notes: What a person should know about the data; a run shows it.
        metrics: What a validation reports, unless the configuration says: names of `trainer.models.metrics`.
        longest: The number of tokens of the longest sample; None: samples are not padded, or not tokens.
        classes: The number of classes of the samples, or of their pixels; None if the data does not say.
        example: Stands for samples where only types and shapes matter, and reads nothing; None: reads some.
    """

    training: Dataset
    validation: Dataset
    fingerprint: str
    vocabulary: int | None = None
    tokenizer: "Tokenizer | None" = field(default=None, repr=False)
    notes: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    longest: int | None = None
    classes: int | None = None
    example: Dataset | None = field(default=None, repr=False)

    def as_example(self) -> "Data":
        """Return the data with its example as all of its samples, if there is one."""
        if self.example is None:
            return self
        return replace(self, training=self.example, validation=self.example)


class Tokenizer(Protocol):
    """Turns text into token numbers and back."""

    @property
    def vocabulary(self) -> int:
        """Return the number of distinct tokens."""

    def encode(self, text: str) -> list[int]:
        """Return the token numbers of the text."""

    def decode(self, tokens: list[int]) -> str:
        """Return the text of the token numbers; never raises."""

    def count_bytes(self, tokens: list[int]) -> int:
        """Return the number of bytes of the text of consecutive tokens."""


def as_tensors(activation: Activation) -> Activation:
    """Return what a dataset has read, with its NumPy arrays as tensors.

    Raises:
        UserError: It contains something that cannot pass between layers.
    """
    try:
        tensors = map_leaves(_as_tensor, activation)
        flatten(tensors)
    except TypeError as error:
        raise UserError(f"the data's inputs and targets must be tensors or NumPy arrays: {error}") from error
    return tensors


def _as_tensor(leaf: Any) -> Any:
    return torch.from_numpy(leaf) if isinstance(leaf, np.ndarray) else leaf
