"""A model of blocks with activations worth recomputing."""

from functools import partial

import torch
from torch import Tensor, nn

from trainer.activation import Activation
from trainer.models.model import Layer, Model

WIDTH = 64


class Block(nn.Module):
    """A block that saves many tensors for its backward, and first modifies its input in place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.begin = nn.ReLU(inplace=True)
        self.up = nn.Linear(width, 4 * width)
        self.norm = nn.BatchNorm1d(4 * width)
        self.drop = nn.Dropout(0.1)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.drop(torch.tanh(self.norm(self.up(self.begin(x)))))
        output: Tensor = self.down(hidden) + x
        return output


class Squares:
    """The sum of squares."""

    def count(self, target: Activation) -> int:
        assert isinstance(target, Tensor)
        return len(target)

    def __call__(self, output: Activation, target: Activation) -> Tensor:
        assert isinstance(output, Tensor)
        return output.square().sum()


def blocks(count: int) -> Model:
    return Model(tuple(Layer(f"block.{i}", partial(Block, WIDTH)) for i in range(count)), Squares())
