"""A model whose layers wait instead of computing: it shows a true schedule on fewer cores than ranks.

Every layer sleeps so long for a forward, and in its backward so long for the gradient of its input and so
long for that of its weight. What it passes on is as large as the message is to be.
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
from trainer.models.model import Layer, Model
from trainer.pipeline.weight_gradients import defer

_SET_TIMER_SLACK = 29  # PR_SET_TIMERSLACK of prctl(2); nanoseconds
_LATEST = 2e-4  # seconds that waking up takes by itself; what is later is the machine's load


@dataclass(frozen=True)
class Sleep:
    """How long a layer sleeps, in seconds."""

    forward: float = 0.02
    input_gradient: float = 0.02
    weight_gradient: float = 0.02


def model(_data: Data, layers: int = 8, **seconds: float) -> Model:
    """Return a model of so many layers; `seconds` are the fields of `Sleep`."""
    sleep = Sleep(**seconds)
    build = partial(SleepingLayer, sleep)
    return Model(tuple(Layer(f"sleeping.{number}", build) for number in range(layers)), MeanOfSamples())


def data(floats: int = 256, samples: int = 1024) -> Data:
    """Return samples of so many numbers: what every message carries for each."""
    return Data(Numbers(samples, floats), Numbers(8, floats), f"numbers {samples} {floats}")


class Numbers:
    """Samples of numbers that do not matter."""

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
    """The mean of what comes out of the last layer."""

    def count(self, target: Activation) -> int:
        """Return the number of samples."""
        return len(cast(Tensor, target))

    def __call__(self, output: Activation, target: Activation) -> Tensor:
        """Return the sum over the samples of the mean of each."""
        return cast(Tensor, output).mean(1).sum()


class SleepingLayer(nn.Module):
    """Multiplies by its weight, and sleeps.

    Attributes:
        slept: How often it did, by what for.
    """

    def __init__(self, sleep: Sleep) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.slept: Counter[str] = Counter()
        self._sleep = sleep
        self._late = 5e-5  # seconds by which sleeps end late, as seen so far
        if sys.platform == "linux":  # else the kernel adds up to 50 microseconds to every sleep
            ctypes.CDLL(None).prctl(_SET_TIMER_SLACK, ctypes.c_ulong(1))

    def forward(self, x: Tensor) -> Tensor:
        """Map [samples, floats] to the same shape."""
        # A real model's first layer has no input to differentiate; here its stage is as long as the others.
        anchor = None if x.requires_grad else self.weight
        passed: Tensor = _Input.apply(x, anchor, self)  # type: ignore[no-untyped-call]
        weight: Tensor = _Weight.apply(self.weight, self)  # type: ignore[no-untyped-call]
        return passed * weight

    def rest(self, what: str, x: Tensor) -> None:
        """Sleep for as long as a part of the work would take, less what waking up takes."""
        if not x.is_meta:
            self.slept[what] += 1
            seconds = getattr(self._sleep, what) - self._late
            start = time.perf_counter()
            time.sleep(max(0.0, seconds))
            late = time.perf_counter() - start - seconds
            self._late += 0.1 * (min(late, _LATEST) - self._late)


class _Input(Function):
    """Passes on the input: asleep for as long as a forward, and the gradient of the input, would take."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor | None, layer: SleepingLayer) -> Tensor:
        del anchor  # its gradient makes this one's backward run
        ctx.layer = layer
        layer.rest("forward", x)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        ctx.layer.rest("input_gradient", gradient)
        return gradient, None, None


class _Weight(Function):
    """Passes on the weight: asleep for as long as its gradient would take.

    A function of its own, so that a split backward of torch's, which runs what both gradients have in common
    twice, sleeps once for each.
    """

    @staticmethod
    def forward(ctx: Any, weight: nn.Parameter, layer: SleepingLayer) -> Tensor:
        ctx.weight, ctx.layer = weight, layer
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None]:
        (gradient,) = gradients

        def rested() -> Tensor:
            ctx.layer.rest("weight_gradient", gradient)
            return gradient

        return None if defer(ctx.weight, rested) else rested(), None
