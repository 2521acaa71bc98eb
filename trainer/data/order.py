"""The order of training samples: a pure function of the seed and the number of samples seen."""

from collections.abc import Callable
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from trainer.data.dataset import Dataset
from trainer.seeds import derive


class SampleOrder(Protocol):
    """The order in which training takes samples."""

    def samples(self, position: int, count: int) -> NDArray[np.int64]:
        """Return the numbers of `count` samples, after the first `position` samples of the run."""


def order_of(dataset: Dataset, seed: int) -> SampleOrder:
    """Return the order in which to train on a dataset: its own, if it has a method `order`, or at random."""
    own: SampleOrder | None = dataset.order(seed) if hasattr(dataset, "order") else None
    return Order(len(dataset), seed) if own is None else own


def across_blocks(
    block: Callable[[int], NDArray[np.int64]], length: int, position: int, count: int
) -> NDArray[np.int64]:
    """Return `count` entries of an endless sequence of blocks, after its first `position` entries.

    Args:
        block: Returns the block of a number.
        length: The length of every block.
        position: The number of entries before.
        count: The number of entries to return.
    """
    parts = []
    while count > 0:
        number, start = divmod(position, length)
        part = block(number)[start : start + count]
        parts.append(part)
        position, count = position + len(part), count - len(part)
    return np.concatenate(parts)


class Order:
    """Consecutive passes over the samples, each in a new random order.

    A batch may span the end of one pass and the start of the next, so that no sample is skipped.

    Args:
        length: The number of samples.
        seed: The run's seed.
    """

    def __init__(self, length: int, seed: int) -> None:
        self._length = length
        self._seed = seed
        self._pass = lru_cache(maxsize=2)(self._shuffle)

    def samples(self, position: int, count: int) -> NDArray[np.int64]:
        """Return the numbers of `count` samples, after the first `position` samples of the run."""
        return across_blocks(self._pass, self._length, position, count)

    def _shuffle(self, number: int) -> NDArray[np.int64]:
        # RandomState, because NumPy guarantees that its numbers never change between releases.
        seed = derive(self._seed, "order", number)
        generator = np.random.RandomState([seed & 0xFFFFFFFF, seed >> 32])
        return generator.permutation(self._length).astype(np.int64)
