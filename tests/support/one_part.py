"""A generated layer between two others, by import path: what random models once found, in its smallest form."""

from functools import partial
from typing import Any

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
    "float64": partial(Typed, WIDTH, "float64"),
    "bfloat16": partial(Typed, WIDTH, "bfloat16"),
    "moving mean": partial(MovingMean, WIDTH, "in place"),
    "fleeting mean": partial(MovingMean, WIDTH, "fleeting"),
    "fixed statistics": partial(BatchNorm, WIDTH, image=False, momentum=0.1, fixed="mode"),
    "largest norm": partial(Bounded, WIDTH),
}


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
