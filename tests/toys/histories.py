"""`model.target=tests.toys.histories:model`: layers that depend on more than inputs, weights and seeds."""

import os

import torch
from torch import Tensor, nn

from tests.fixtures.images import CLASSES, EDGE, ClassLoss
from trainer.data.dataset import Data
from trainer.models.model import Layer, Model

WIDTH = 8


class Counted(nn.Flatten):
    """Counts how often it has run."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        Counted.calls += 1
        return super().forward(x)


class Calls(nn.Linear):
    """Depends on how often it and another layer have run, hence on the order that a schedule runs them in."""

    def forward(self, x: Tensor) -> Tensor:
        Counted.calls += 1
        return super().forward(x).tanh() * (1 + Counted.calls * 1e-3)


class Process(nn.Linear):
    """Depends on the process."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + os.getpid() % 1000 * 1e-4


class Mean(nn.Linear):
    """Keeps a mean of what it returns."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.register_buffer("mean", torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if self.training:
            self.mean.lerp_(y.detach().mean(0), 0.1)  # type: ignore[operator, union-attr]
        return y


def model(data: Data, what: str) -> Model:
    """Return three linear layers, the middle one of a kind of these."""
    kind = {"calls": Calls, "process": Process, "mean": Mean}[what]
    first = lambda: nn.Sequential(Counted(), nn.Linear(EDGE * EDGE, WIDTH))  # noqa: E731
    return Model(
        (
            Layer("first", first),
            Layer("middle", lambda: nn.Sequential(kind(WIDTH, WIDTH))),
            Layer("last", lambda: nn.Linear(WIDTH, CLASSES)),
        ),
        ClassLoss(),
    )


def existing(data: Data) -> Model:
    """Return the layers of a network that exists, with the same weights in every process."""
    torch.manual_seed(3)
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(EDGE * EDGE, WIDTH), nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, CLASSES)
    )
    return Model(
        tuple(Layer(f"part.{i}", lambda part=part: part) for i, part in enumerate(network)), ClassLoss()
    )
