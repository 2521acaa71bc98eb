"""A search names the place where numbers first stop being finite."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.one_process import Given, Pipeline
from trainer.models.model import Layer, Model
from trainer.pipeline.not_finite import Finding, Search
from trainer.pipeline.recomputation import Recompute

MICRO_BATCHES = 4
FIRST = 8  # the replica's first micro-batch


class Squares:
    def count(self, target: Tensor) -> int:
        return len(target)

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        return output.square().sum()


class Lifted(Squares):
    """Overflows for the marked micro-batch."""

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        return super().__call__(output, target) * (torch.inf if target[0, 0] > 1 else 1)


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        return y


class Overflows(Linear):
    """Gives infinity where its input is marked."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * torch.where(x.detach().abs().max() > 30, torch.inf, 1.0)


class Root(Linear):
    """Has an infinite derivative, and finite values."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + (x - x).abs().sqrt()


class BadWeightGradient(Linear):
    """Has a weight whose gradient is not finite, and an input whose gradient is."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.scale.sqrt()


def searched(
    odd: Callable[[], nn.Module],
    *,
    loss: Any = None,
    inputs: list[Tensor] | None = None,
    schedule: str = "1f1b",
    recompute: Recompute = Recompute.NONE,
) -> Finding | None:
    layers = tuple(Layer(f"layer.{i}", odd if i == 2 else Linear) for i in range(4))
    of = Pipeline(Model(layers, loss or Squares()), [2, 2], schedule, recompute=recompute)
    given = inputs or [torch.randn(2, 3) for _ in range(MICRO_BATCHES)]
    source = Given(given, given)
    search = Search(of.layers, FIRST)

    def train() -> dict[int, Tensor]:
        return of.engine.train(of.actions(MICRO_BATCHES), source, 1.0)

    return search.look(train, dict(enumerate(given)))


def marked(value: float) -> list[Tensor]:
    inputs = [0.1 * torch.randn(2, 3) for _ in range(MICRO_BATCHES)]
    for i in (2, 3):
        inputs[i][0, 0] = value
    return inputs


RUNS = pytest.mark.parametrize(
    ("schedule", "recompute"),
    [
        ("1f1b", Recompute.NONE),
        ("zb_h1", Recompute.NONE),
        ("1f1b", Recompute.FULL),
        ("zb_h1", Recompute.SELECTIVE),
    ],
)


@RUNS
def test_nothing_to_find(schedule: str, recompute: Recompute) -> None:
    assert searched(Linear, schedule=schedule, recompute=recompute) is None


@RUNS
def test_a_forward(schedule: str, recompute: Recompute) -> None:
    found = searched(Overflows, inputs=marked(1e3), schedule=schedule, recompute=recompute)
    assert found is not None
    assert found.words == "the output of layer 'layer.2', in micro-batch 10"


@RUNS
def test_a_backward(schedule: str, recompute: Recompute) -> None:
    found = searched(Root, schedule=schedule, recompute=recompute)
    assert found is not None
    assert found.words == "the gradient of the output of layer 'layer.1', in micro-batch 8"


@RUNS
def test_a_weight_gradient(schedule: str, recompute: Recompute) -> None:
    found = searched(BadWeightGradient, schedule=schedule, recompute=recompute)
    assert found is not None
    assert found.words == "the gradient of layer.2/scale, in micro-batch 8"


def test_the_data() -> None:
    found = searched(Linear, inputs=marked(torch.nan))
    assert found is not None
    assert found.words == "the data's inputs, in micro-batch 10"


def test_the_loss() -> None:
    found = searched(Linear, loss=Lifted(), inputs=marked(2.0))
    assert found is not None
    assert found.words == "the loss, in micro-batch 10"


def test_weights() -> None:
    class Broken(Linear):
        def __init__(self) -> None:
            super().__init__()
            self.linear.bias.data.fill_(torch.inf)

    found = searched(Broken)
    assert found is not None
    assert found.words == "the weights layer.2/linear.bias"


def test_findings_are_ordered() -> None:
    """Weights come before forwards, forwards by micro-batch and layer, backwards from the last layer on."""
    places = [(0, 0, 3), (1, 8, 0), (1, 8, 1 << 30), (1, 9, -1), (2, 8, -6), (2, 8, -4), (2, 9, -6)]
    findings = [Finding(*place, "") for place in places]
    assert all(one < other for one, other in pairwise(findings))
