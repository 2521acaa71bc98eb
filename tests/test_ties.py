"""Tied parameters: which stages share them, equal from the start, their gradients added in layer order."""

import pytest
import torch
from torch import nn

from tests.support.one_process import Given, Pipeline
from trainer.activation import Activation
from trainer.errors import UserError
from trainer.models.model import Layer, Model, Tie
from trainer.pipeline.build import build_layer
from trainer.pipeline.ties import tied_stages
from trainer.schedule.actions import Tied

CPU = torch.device("cpu")


def layer(name: str, *owners: str) -> Layer:
    return Layer(name, lambda: nn.Linear(2, 2), tuple(Tie("weight", owner, "weight") for owner in owners))


LAYERS = (layer("a"), layer("b"), layer("c", "a"), layer("d", "b"), layer("e", "a"))


@pytest.mark.parametrize(
    ("stage_of", "pairs"),
    [
        ([0, 0, 0, 0, 0], [(0, 0)]),
        ([0, 0, 1, 1, 1], [(0, 1)]),
        ([0, 0, 1, 1, 2], [(0, 1), (0, 2)]),
        ([0, 1, 2, 3, 4], [(0, 2), (1, 3), (0, 4)]),
        ([0, 1, 1, 1, 2], [(0, 1), (1, 1), (0, 2)]),
    ],
)
def test_pairs_of_stages_in_the_order_of_the_uses(stage_of: list[int], pairs: list[tuple[int, int]]) -> None:
    assert tied_stages(LAYERS, stage_of) == tuple(Tied(owner, use) for owner, use in pairs)


def test_copies_are_equal_from_the_start() -> None:
    built = [build_layer(LAYERS, i, 0, CPU).module for i in range(5)]
    assert torch.equal(built[2].weight, built[0].weight)
    assert torch.equal(built[3].weight, built[1].weight)
    assert torch.equal(built[4].weight, built[0].weight)
    assert not torch.equal(built[1].weight, built[0].weight)
    assert not torch.equal(built[2].bias, built[0].bias)
    assert built[2].weight.data_ptr() != built[0].weight.data_ptr()


def test_a_rank_builds_a_use_without_its_owner() -> None:
    alone = build_layer(LAYERS, 4, 0, CPU).module.weight
    assert torch.equal(alone, build_layer(LAYERS, 0, 0, CPU).module.weight)


class Add(nn.Module):
    """Adds its weight times a factor, so the weight's gradient is the factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.factor * self.weight


class Sum:
    """The output itself as the loss."""

    def count(self, target: Activation) -> int:
        return 1

    def __call__(self, output: Activation, target: Activation) -> torch.Tensor:
        assert isinstance(output, torch.Tensor)
        return output.sum()


@pytest.mark.parametrize("sizes", [[4], [1, 3], [1, 1, 2], [1, 1, 1, 1], [2, 2]])
def test_gradients_are_added_in_the_order_of_layers(sizes: list[int]) -> None:
    """In float32, (1 + 2**24) + (4 - 2**24) is 4, as the 1 is lost; other orders give 5."""
    factors = {"owner": 1.0, "first": 2.0**24, "second": 4 - 2.0**24, "third": 0.25}
    layers = [
        Layer(
            name, lambda factor=factor: Add(factor), (Tie("weight", "owner", "weight"),) * (name != "owner")
        )
        for name, factor in factors.items()
    ]
    pipeline = Pipeline(Model(tuple(layers), Sum()), sizes)
    pipeline.train(Given([torch.zeros(())], [torch.zeros(())]), 1)
    assert {float(gradient) for gradient in pipeline.gradients().values()} == {4.25}


def test_two_parameters_between_the_same_stages() -> None:
    ties = (Tie("weight", "owner", "weight"), Tie("bias", "owner", "bias"))
    layers = (Layer("owner", lambda: nn.Linear(2, 2)), Layer("use", lambda: nn.Linear(2, 2), ties))
    pipeline = Pipeline(Model(layers, Sum()), [1, 1])
    pipeline.train(Given([torch.ones(3, 2)], [torch.zeros(())]), 1)
    owner, use = (built.module for built in pipeline.layers)
    assert torch.equal(owner.weight, use.weight)
    assert torch.equal(owner.bias, use.bias)
    assert torch.equal(owner.weight.grad, use.weight.grad)
    assert torch.equal(owner.bias.grad, use.bias.grad)
    plain = nn.Linear(2, 2)
    plain.load_state_dict(owner.state_dict())
    plain(plain(torch.ones(3, 2))).sum().backward()
    torch.testing.assert_close(owner.weight.grad, plain.weight.grad)
    torch.testing.assert_close(owner.bias.grad, plain.bias.grad)


@pytest.mark.parametrize(
    ("tie", "words"),
    [
        (Tie("wieght", "a", "weight"), "'wieght' of layer 'b', .* did you mean weight"),
        (Tie("weight", "a", "gain"), "'gain' of layer 'a'"),
        (
            Tie("weight", "a", "bias"),
            r"'weight' of shape \(2, 2\) to 'bias' of layer 'a', whose shape is \(2,\)",
        ),
    ],
)
def test_ties_that_do_not_fit(tie: Tie, words: str) -> None:
    layers = (layer("a"), Layer("b", lambda: nn.Linear(2, 2), (tie,)))
    with pytest.raises(UserError, match=words):
        build_layer(layers, 1, 0, CPU)
