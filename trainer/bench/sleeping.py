"""A model whose layers sleep instead of computing, to time real schedules on fewer cores than ranks.

Every layer sleeps for a given time in its forward, and in its backward for the input gradient and for the
weight gradient. The size of its output is the size of the messages.
"""

import ctypes
import sys
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd import Function

from trainer.activation import Activation
from trainer.data.dataset import Data
from trainer.models.deferring import defer
from trainer.models.model import Layer, Model

_SET_TIMER_SLACK = 29  # PR_SET_TIMERSLACK of prctl(2); nanoseconds
_LATEST = 2e-4  # seconds: the longest wake-up delay to compensate; more is the machine's load


@dataclass(frozen=True)
class Sleep:
    """How long a layer sleeps, in seconds."""

    forward: float = 0.02
    input_gradient: float = 0.02
    weight_gradient: float = 0.02


def model(_data: Data, layers: int = 8, **seconds: float) -> Model:
    """Return a model of n layers; `seconds` are the fields of `Sleep`."""
    sleep = Sleep(**seconds)
    build = partial(SleepingLayer, sleep)
    return Model(tuple(Layer(f"sleeping.{number}", build) for number in range(layers)), MeanOfSamples())


def data(floats: int = 256, samples: int = 1024) -> Data:
    """Return samples of `floats` numbers each: the content of the messages."""
    return Data(Numbers(samples, floats), Numbers(8, floats), f"numbers {samples} {floats}")


class Numbers:
    """Samples of arbitrary numbers."""

    def __init__(self, samples: int, floats: int) -> None:
        self._samples = samples
        self._floats = floats

    def __len__(self) -> int:
        """Return the number of samples."""
        return self._samples

    def inputs(self, samples: NDArray[np.int64]) -> Tensor:
        """Return float32 [samples, floats]."""
        return torch.ones(len(samples), self._floats)

    def targets(self, samples: NDArray[np.int64]) -> Tensor:
        """Return float32 [samples]."""
        return torch.zeros(len(samples))


class MeanOfSamples:
    """The mean of the last layer's output, as a loss."""

    def count(self, target: Activation) -> int:
        """Return the number of samples."""
        return len(cast(Tensor, target))

    def __call__(self, output: Activation, target: Activation) -> Tensor:
        """Return the sum of the samples' means."""
        return cast(Tensor, output).mean(1).sum()


class SleepingLayer(nn.Module):
    """Multiplies by its weight, and sleeps.

    Attributes:
        slept: How often it slept, by purpose.
    """

    def __init__(self, sleep: Sleep) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.slept: Counter[str] = Counter()
        self._sleep = sleep
        self._late = 5e-5  # seconds: the mean delay of sleeps so far
        if sys.platform == "linux":  # otherwise the kernel adds up to 50 microseconds to a sleep
            ctypes.CDLL(None).prctl(_SET_TIMER_SLACK, ctypes.c_ulong(1))

    def forward(self, x: Tensor) -> Tensor:
        """Map [samples, floats] to the same shape."""
        # A real first layer has no input gradient; here the first stage takes as long as the others.
        anchor = None if x.requires_grad else self.weight
        passed: Tensor = _Input.apply(x, anchor, self)  # type: ignore[no-untyped-call]
        weight: Tensor = _Weight.apply(self.weight, self)  # type: ignore[no-untyped-call]
        return passed * weight

    def rest(self, purpose: str, x: Tensor) -> None:
        """Sleep for as long as a part of the work takes, less the wake-up delay."""
        if not x.is_meta:
            self.slept[purpose] += 1
            seconds = getattr(self._sleep, purpose) - self._late
            start = time.perf_counter()
            time.sleep(max(0.0, seconds))
            late = time.perf_counter() - start - seconds
            self._late += 0.1 * (min(late, _LATEST) - self._late)


class _Input(Function):
    """Returns the input; sleeps as long as the forward and the input gradient take."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor | None, layer: SleepingLayer) -> Tensor:
        del anchor  # it requires gradients, so that this backward runs
        ctx.layer = layer
        layer.rest("forward", x)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        ctx.layer.rest("input_gradient", gradient)
        return gradient, None, None


class _Weight(Function):
    """Returns the weight; sleeps as long as its gradient takes.

    It is separate from `_Input`, because torch's split backward runs the nodes that both gradients share
    twice; like this it sleeps once for each gradient.
    """

    @staticmethod
    def forward(ctx: Any, weight: nn.Parameter, layer: SleepingLayer) -> Tensor:
        ctx.weight, ctx.layer = weight, layer
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None]:
        (gradient,) = gradients

        def weight_gradient() -> Tensor:
            ctx.layer.rest("weight_gradient", gradient)
            return gradient

        return None if defer(ctx.weight, weight_gradient) else weight_gradient(), None
