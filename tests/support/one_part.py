"""A generated layer between two others, by import path: what random models have found, at its smallest."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tests.generated.layers_chance import Bounded
from tests.generated.layers_passing import Block
from tests.generated.layers_plain import Typed
from tests.generated.layers_state import BatchNorm, MovingMean
from trainer.data.dataset import Data
from trainer.models.model import Layer, Model
from trainer.models.simplenet import BinaryLoss

WIDTH = 8
PARTS = {
    "bfloat16": partial(Typed, WIDTH, "bfloat16"),
    "moving mean": partial(MovingMean, WIDTH, "in place"),
    "fleeting mean": partial(MovingMean, WIDTH, "fleeting"),
    "fixed statistics": partial(BatchNorm, WIDTH, image=False, momentum=0.1, fixed="mode"),
    "largest norm": partial(Bounded, WIDTH, rows=500),
}


class Scaled(nn.Module):
    """Scales steps in time, in a layer before an LSTM, whose gradient it gets laid out by time."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (-1, 2)) * self.scale


class Last(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(2, 2, batch_first=True)
        self.linear = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.lstm(x)[0].flatten(1))


class Loud(BinaryLoss):
    def __init__(self, factor: float) -> None:
        self._factor = factor

    def __call__(self, output: Any, target: Any) -> Tensor:
        return self._factor * super().__call__(output, target)


def model(data: Data, part: str, factor: float = 1.0) -> Model:
    layers = (
        Layer("first", lambda: nn.Linear(10, WIDTH)),
        Layer("part", lambda: Block(PARTS[part](), "tensor")),
        Layer("last", lambda: nn.Linear(WIDTH, 1)),
    )
    return Model(layers, Loud(factor))


def recurrent(data: Data) -> Model:
    layers = (Layer("first", lambda: nn.Linear(10, WIDTH)), Layer("scaled", Scaled), Layer("last", Last))
    return Model(layers, BinaryLoss())
