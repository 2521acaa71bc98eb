"""Models, data and a loss that fail."""

from functools import partial

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from trainer.activation import Activation
from trainer.data.binary import Labelled
from trainer.data.dataset import Data
from trainer.models.model import Layer, Model
from trainer.models.simplenet import BinaryLoss


class Failing(nn.Module):
    """A layer that fails in one of its forward passes."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.linear = nn.Linear(10, 1)
        self._left = at

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_meta:  # not while it is costed on the meta device
            self._left -= 1
            if self._left == 0:
                raise ArithmeticError("this layer fails on purpose")
        return F.relu(self.linear(x))


def failing(data: Data, at: int = 3) -> Model:
    layers = (Layer("first", lambda: nn.Linear(10, 10)), Layer("failing", partial(Failing, at)))
    return Model(layers, BinaryLoss())


class Unlabelled(Labelled):
    """Samples the fifth of which, and all later ones, have no targets."""

    def targets(self, samples: NDArray[np.int64]) -> Tensor:
        if samples.max() >= 4:
            raise KeyError("no label")
        return super().targets(samples)


def unlabelled() -> Data:
    x = np.random.default_rng(0).standard_normal((40, 10), dtype=np.float32)
    labels = (x.sum(axis=1) > 0).astype(np.float32)
    return Data(Labelled(x[:32], labels[:32]), Unlabelled(x[32:], labels[32:]), "unlabelled")


class NoLoss:
    """A placeholder: a model must have a loss, which is not costed."""

    def count(self, target: Activation) -> int:
        raise NotImplementedError

    def __call__(self, output: Activation, target: Activation) -> Tensor:
        raise NotImplementedError


def positives(output: Tensor, target: Tensor) -> tuple[Tensor, int]:
    """A metric: the share of positive outputs."""
    return (output > 0).sum(), len(target)


def no_pair(output: Tensor, target: Tensor) -> Tensor:
    """A metric that returns a sum without its count."""
    return (output > 0).sum()
