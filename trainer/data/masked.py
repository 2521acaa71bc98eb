"""Masked language modelling, as BERT's (Devlin et al. 2018, https://arxiv.org/abs/1810.04805, section 3.1).

Of every sample a share of the tokens is chosen; the model predicts these, and the loss is over them alone. Of
the chosen, 80 % are replaced by the mask, 10 % by a random token, and 10 % stay.

    static     a sample's choice follows from the seed and its number: it is the same in every pass, and for
               every size of micro-batches
    dynamic    it follows from these and from what the global generator of NumPy draws, which the engine seeds
               for every step and micro-batch: other tokens in every pass (Liu et al. 2019,
               https://arxiv.org/abs/1907.11692, section 4.1)

Both are the same on the rank that reads inputs and on the one that reads targets, in every layout.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.activation import Activation
from trainer.data.dataset import Dataset

IGNORED = -100  # the target of tokens that are not chosen
_MASKED, _REPLACED = 0.8, 0.9  # up to here the mask, from there to here a random token


class Masked:
    """Samples of tokens, of which some are masked.

    Args:
        samples: The samples; their inputs are int64 tokens [samples, time], or a dict with `input_ids`.
        share: The share of tokens that are chosen, at least one a sample.
        mask: The number of the mask's token.
        vocabulary: How many tokens there are to replace others by.
        seed: The seed of the choice.
        never: Tokens that are never chosen, such as padding.
        dynamic: Whether the choice changes from step to step.
    """

    def __init__(
        self,
        samples: Dataset,
        *,
        share: float,
        mask: int,
        vocabulary: int,
        seed: int,
        never: Sequence[int] = (),
        dynamic: bool = False,
    ) -> None:
        self.original = samples
        self._share = share
        self._mask = mask
        self._vocabulary = vocabulary
        self._seed = seed
        self._never = list(never)
        self._dynamic = dynamic

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.original)

    def inputs(self, samples: NDArray[np.int64]) -> Activation:
        """Return the samples' inputs, with some of their tokens masked."""
        drawn = self._draw()
        inputs = self.original.inputs(samples)
        tokens = tokens_of(inputs)
        for row, sample in zip(tokens, samples, strict=True):
            chosen, generator = self._choose(int(sample), row, drawn)
            how = generator.random(len(chosen))
            other = generator.integers(0, self._vocabulary, len(chosen))
            row[chosen] = np.where(how < _MASKED, self._mask, np.where(how < _REPLACED, other, row[chosen]))
        masked = torch.from_numpy(tokens)
        return {**inputs, "input_ids": masked} if isinstance(inputs, dict) else masked

    def targets(self, samples: NDArray[np.int64]) -> Tensor:
        """Return int64 targets [samples, time]: the tokens that were chosen, elsewhere `IGNORED`."""
        drawn = self._draw()
        tokens = tokens_of(self.original.inputs(samples))
        targets = np.full_like(tokens, IGNORED)
        for row, target, sample in zip(tokens, targets, samples, strict=True):
            chosen, _ = self._choose(int(sample), row, drawn)
            target[chosen] = row[chosen]
        return torch.from_numpy(targets)

    def _draw(self) -> list[int]:
        return [int(np.random.randint(1 << 31))] if self._dynamic else []

    def _choose(
        self, sample: int, row: NDArray[Any], drawn: list[int]
    ) -> tuple[NDArray[np.int64], np.random.Generator]:
        """Return which positions of a sample are chosen, and what draws the rest."""
        generator = np.random.default_rng([self._seed, sample, *drawn])
        (may,) = np.nonzero(~np.isin(row, self._never)) if self._never else (np.arange(len(row)),)
        number = max(1, round(self._share * len(may)))
        return may[generator.permutation(len(may))[:number]], generator


def tokens_of(inputs: Activation) -> NDArray[Any]:
    """Return a copy of the tokens of a dataset's inputs."""
    tokens: Tensor = inputs["input_ids"] if isinstance(inputs, dict) else inputs
    return np.array(tokens.numpy())
