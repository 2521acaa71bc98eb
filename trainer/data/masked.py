"""Masked language modelling, as BERT's (Devlin et al. 2018, https://arxiv.org/abs/1810.04805, section 3.1).

Of every sample a share of the tokens is chosen; the model predicts these, and the loss is over them alone. Of
the chosen, 80 % are replaced by the mask, 10 % by a random token, and 10 % stay. A sample's choice follows
from the seed and its number, so it is the same on the rank that reads inputs and on the one that reads
targets, in every layout and every pass.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.data.dataset import Dataset

IGNORED = -100  # the target of tokens that are not chosen
_MASKED, _REPLACED = 0.8, 0.9  # up to here the mask, from there to here a random token


class Masked:
    """Samples of tokens, of which some are masked.

    Args:
        samples: The samples; their inputs are int64 tokens [samples, time].
        share: The share of tokens that are chosen, at least one a sample.
        mask: The number of the mask's token.
        vocabulary: How many tokens there are to replace others by.
        seed: The seed of the choice.
    """

    def __init__(self, samples: Dataset, *, share: float, mask: int, vocabulary: int, seed: int) -> None:
        self._samples = samples
        self._share = share
        self._mask = mask
        self._vocabulary = vocabulary
        self._seed = seed

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._samples)

    def inputs(self, samples: NDArray[np.int64]) -> Tensor:
        """Return int64 tokens [samples, time], some of them masked."""
        tokens: NDArray[Any] = self._samples.inputs(samples).numpy().copy()
        for row, sample in zip(tokens, samples, strict=True):
            chosen, generator = self._choose(int(sample), len(row))
            how = generator.random(len(chosen))
            other = generator.integers(0, self._vocabulary, len(chosen))
            row[chosen] = np.where(how < _MASKED, self._mask, np.where(how < _REPLACED, other, row[chosen]))
        return torch.from_numpy(tokens)

    def targets(self, samples: NDArray[np.int64]) -> Tensor:
        """Return int64 targets [samples, time]: the tokens that were chosen, elsewhere `IGNORED`."""
        tokens: NDArray[Any] = self._samples.inputs(samples).numpy()
        targets = np.full_like(tokens, IGNORED)
        for row, target, sample in zip(tokens, targets, samples, strict=True):
            chosen, _ = self._choose(int(sample), len(row))
            target[chosen] = row[chosen]
        return torch.from_numpy(targets)

    def _choose(self, sample: int, length: int) -> tuple[NDArray[np.int64], np.random.Generator]:
        """Return which tokens of a sample are chosen, and what draws the rest."""
        generator = np.random.default_rng([self._seed, sample])
        number = max(1, round(self._share * length))
        return generator.permutation(length)[:number], generator
