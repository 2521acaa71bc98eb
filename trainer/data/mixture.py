"""Mixtures of sources: which one a sample comes from follows from the seed and the sample's position.

Positions are divided into blocks. Every block has exactly as many samples of each source as the weights say,
in an order of its own; so how many samples of a source come before a position is a product and one look at a
block, and a run resumes anywhere at once. Within a source, samples come in the order of `trainer.data.order`.
"""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.data.dataset import Dataset
from trainer.data.order import Order, SampleOrder, across_blocks
from trainer.seeds import derive

_SHORTEST = 1024  # samples of a block
_LONGEST = 1 << 20


class Shares:
    """The source of every position.

    Args:
        weights: The sources' weights; only their ratios matter.
        seed: The seed of the order within blocks.

    Attributes:
        block: The samples of a block.
        counts: How many of them each source has.
    """

    def __init__(self, weights: Sequence[float], seed: int) -> None:
        self.block, self.counts = _block(weights)
        self._seed = seed
        self._order = lru_cache(maxsize=2)(self._shuffle)

    def sources(self, position: int, count: int) -> NDArray[np.int64]:
        """Return the source of each of `count` samples, after the first `position` samples."""
        return across_blocks(self._order, self.block, position, count)

    def before(self, position: int) -> NDArray[np.int64]:
        """Return how many of the first `position` samples each source has."""
        number, start = divmod(position, self.block)
        inside = np.bincount(self._order(number)[:start], minlength=len(self.counts))
        return number * self.counts + inside

    def _shuffle(self, number: int) -> NDArray[np.int64]:
        seed = derive(self._seed, "mixture", number)
        generator = np.random.RandomState([seed & 0xFFFFFFFF, seed >> 32])  # as in `trainer.data.order`
        return generator.permutation(np.repeat(np.arange(len(self.counts)), self.counts)).astype(np.int64)


def _block(weights: Sequence[float]) -> tuple[int, NDArray[np.int64]]:
    """Return the length of a block, and each source's samples in it: exact unless the ratios are absurd."""
    exact = [Fraction(str(weight)) for weight in weights]
    shares = [weight / sum(exact) for weight in exact]
    smallest = math.lcm(*(share.denominator for share in shares))
    block = smallest * -(-_SHORTEST // smallest) if smallest <= _LONGEST else _LONGEST
    counts = [math.floor(share * block) for share in shares]
    for _, source in sorted(
        (count - share * block, i) for i, (count, share) in enumerate(zip(counts, shares, strict=True))
    )[: block - sum(counts)]:
        counts[source] += 1
    return block, np.array(counts, dtype=np.int64)


class MixtureOrder:
    """The samples of a mixture, numbered one source after another, in the order of training.

    Args:
        shares: The source of every position.
        orders: The order of each source's samples.
        first: The number of each source's first sample.
    """

    def __init__(self, shares: Shares, orders: Sequence[SampleOrder], first: NDArray[np.int64]) -> None:
        self._shares = shares
        self._orders = orders
        self._first = first

    def samples(self, position: int, count: int) -> NDArray[np.int64]:
        """Return the numbers of `count` samples, after the first `position` samples of the run."""
        sources, before = self._shares.sources(position, count), self._shares.before(position)
        numbers = np.empty(count, dtype=np.int64)
        for source, order in enumerate(self._orders):
            (places,) = np.nonzero(sources == source)
            if len(places):
                numbers[places] = self._first[source] + order.samples(int(before[source]), len(places))
        return numbers


class _InOrder:
    def samples(self, position: int, count: int) -> NDArray[np.int64]:
        return np.arange(position, position + count, dtype=np.int64)


class Mixture:
    """Samples of several datasets, numbered one dataset after another.

    Args:
        parts: The datasets; their samples are tensors of one shape.
        weights: How often each is trained on.
    """

    def __init__(self, parts: Sequence[Dataset], weights: Sequence[float]) -> None:
        self._parts = parts
        self._weights = weights
        self._first = np.cumsum([0, *(len(part) for part in parts)])

    def __len__(self) -> int:
        """Return the number of samples of all datasets."""
        return int(self._first[-1])

    def inputs(self, samples: NDArray[np.int64]) -> Tensor:
        """Return inputs [samples, ...]."""
        return self._gather(samples, lambda part: part.inputs)

    def targets(self, samples: NDArray[np.int64]) -> Tensor:
        """Return targets [samples, ...]."""
        return self._gather(samples, lambda part: part.targets)

    def order(self, seed: int) -> MixtureOrder:
        """Return the order of training: by the weights; each source in passes of its own."""
        orders = [Order(len(part), derive(seed, "source", i)) for i, part in enumerate(self._parts)]
        return MixtureOrder(Shares(self._weights, seed), orders, self._first)

    def in_proportion(self) -> NDArray[np.int64]:
        """Return the numbers of the longest run of samples that follows the weights and repeats none."""
        shares = Shares(self._weights, 0)
        lengths = np.array([len(part) for part in self._parts])
        blocks = int((lengths // np.maximum(shares.counts, 1)).min()) + 1
        sources = shares.sources(0, blocks * shares.block)
        used = np.stack([np.cumsum(sources == source) for source in range(len(lengths))], axis=1)
        (too_many,) = np.nonzero((used > lengths).any(axis=1))
        count = int(too_many[0]) if len(too_many) else len(sources)
        return MixtureOrder(shares, [_InOrder()] * len(lengths), self._first).samples(0, count)

    def _gather(
        self, samples: NDArray[np.int64], method: Callable[[Dataset], Callable[[NDArray[np.int64]], Tensor]]
    ) -> Tensor:
        sources = np.searchsorted(self._first, samples, side="right") - 1
        gathered: Tensor | None = None
        for source in np.unique(sources):
            (places,) = np.nonzero(sources == source)
            part = method(self._parts[source])(samples[places] - self._first[source])
            if gathered is None:
                gathered = part.new_empty((len(samples), *part.shape[1:]))
            gathered[torch.from_numpy(places)] = part
        assert gathered is not None
        return gathered


class Chosen:
    """Some samples of a dataset, in a given order.

    Args:
        dataset: The dataset.
        numbers: The samples.
    """

    def __init__(self, dataset: Dataset, numbers: NDArray[np.int64]) -> None:
        self._dataset = dataset
        self._numbers = numbers

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._numbers)

    def inputs(self, samples: NDArray[np.int64]) -> Tensor:
        """Return inputs [samples, ...]."""
        read: Tensor = self._dataset.inputs(self._numbers[samples])
        return read

    def targets(self, samples: NDArray[np.int64]) -> Tensor:
        """Return targets [samples, ...]."""
        read: Tensor = self._dataset.targets(self._numbers[samples])
        return read
