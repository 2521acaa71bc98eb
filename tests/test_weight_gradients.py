"""Backwards in two parts: the same bits as whole ones, and an error where they would not be."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from trainer.errors import UserError
from trainer.pipeline.randomness import Randomness
from trainer.pipeline.stage import BuiltLayer, Stage
from trainer.pipeline.weight_gradients import put_off

CPU = torch.device("cpu")
WIDTH = 24
MICRO_BATCHES = 3


class Twice(nn.Module):
    """Calls one linear map three times."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.linear(x).tanh()) + self.linear(x)


class Derived(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * 2, self.bias)


class Shared(nn.Module):
    """Two linear maps with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.other.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.one(x).tanh())


class Mixed(nn.Module):
    """Uses a linear map's weight besides calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) @ self.linear.weight


class Scale(torch.autograd.Function):
    """A user's own: multiplies by a weight, whose gradient it puts off."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: nn.Parameter) -> Tensor:
        ctx.save_for_backward(x)
        ctx.weight = weight
        return x * weight

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
        (x,) = ctx.saved_tensors

        def of_weight() -> Tensor:
            return (gradient * x).flatten(0, -2).sum(0)

        later = put_off(ctx.weight, of_weight)
        return gradient * ctx.weight, None if later else of_weight()


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return Scale.apply(x, self.weight)


def frozen(module: nn.Linear, name: str) -> nn.Module:
    module.get_parameter(name).requires_grad_(False)
    return module


MODULES: dict[str, tuple[Callable[[], nn.Module], int]] = {  # how many parameters have their gradients later
    "linear": (lambda: nn.Linear(WIDTH, WIDTH), 2),
    "no bias": (lambda: nn.Linear(WIDTH, WIDTH, bias=False), 1),
    "three times": (Twice, 2),
    "weight frozen": (lambda: frozen(nn.Linear(WIDTH, WIDTH), "weight"), 1),
    "bias frozen": (lambda: frozen(nn.Linear(WIDTH, WIDTH), "bias"), 1),
    "own": (Own, 1),
    "derived": (lambda: Derived(WIDTH, WIDTH), 0),
    "shared": (Shared, 0),
    "parametrised": (lambda: parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)), 0),
    "norm": (lambda: nn.LayerNorm(WIDTH), 0),
}


def stage_of(build: Callable[[], nn.Module]) -> Stage:
    torch.manual_seed(0)
    modules = [nn.Linear(WIDTH, WIDTH), build(), nn.Linear(WIDTH, WIDTH)]
    layers = [BuiltLayer(i, f"layer {i}", module) for i, module in enumerate(modules)]
    return Stage(0, layers, CPU, loss=None, randomness=Randomness(0), between=lambda: None)


def train(
    stage: Stage, shape: tuple[int, ...], *, split: bool, wanted: bool
) -> tuple[list[Tensor], list[Tensor | None], int]:
    """Run all forwards, then all backwards; return input gradients, gradients, and how many came later."""
    given = torch.Generator().manual_seed(1)
    inputs = [torch.rand(*shape, WIDTH, generator=given).requires_grad_(wanted) for _ in range(MICRO_BATCHES)]
    outputs = [stage.forward(i, [x], 0, split=split)[0] for i, x in enumerate(inputs)]
    seeds = [torch.rand(tensors[0].shape, generator=given) for tensors in outputs]
    back = [gradient for i, seed in enumerate(seeds) for gradient in stage.backward(i, [seed])]
    middle = [p for p in stage.layers[1].module.parameters() if p.requires_grad]
    later = sum(parameter.grad is None for parameter in middle)
    if split:
        for i in range(MICRO_BATCHES):
            stage.weight_gradients(i)
    return back, [p.grad for layer in stage.layers for p in layer.module.parameters()], later


@pytest.mark.parametrize("wanted", [True, False], ids=["gradient wanted", "first stage"])
@pytest.mark.parametrize("shape", [(5,), (3, 7), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("name", MODULES)
def test_a_split_backward_has_the_bits_of_a_whole_one(
    name: str, shape: tuple[int, ...], *, wanted: bool
) -> None:
    build, put_off_by_it = MODULES[name]
    whole = train(stage_of(build), shape, split=False, wanted=wanted)
    split = train(stage_of(build), shape, split=True, wanted=wanted)
    for one, other in zip([*whole[0], *whole[1]], [*split[0], *split[1]], strict=True):
        assert (one is None and other is None) or torch.equal(one, other)
    assert whole[2] == 0
    assert split[2] == put_off_by_it


def test_whole_and_split_backwards_in_turn() -> None:
    """As where a schedule splits some of a stage's backwards only."""
    gradients = []
    for splits in ((), (0, 2)):
        stage = stage_of(Twice)
        for i in range(MICRO_BATCHES):
            x = torch.full((2, WIDTH), 0.1 * (i + 1), requires_grad=True)
            (y,), _ = stage.forward(i, [x], 0, split=i in splits)
            stage.backward(i, [torch.ones_like(y)])
            if i in splits:
                stage.weight_gradients(i)
        gradients.append([p.grad for layer in stage.layers for p in layer.module.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_layers_complete_in_the_second_part() -> None:
    stage, complete = stage_of(nn.Tanh), list[str]()
    (y,), _ = stage.forward(0, [torch.ones(2, WIDTH)], 0, split=True)
    stage.backward(0, [y], lambda layer: complete.append(layer.name))
    assert complete == []
    stage.weight_gradients(0, lambda layer: complete.append(layer.name))
    assert complete == ["layer 2", "layer 1", "layer 0"]


def test_a_weight_that_is_used_besides() -> None:
    """Autograd would add both uses up first: the split refuses rather than give other bits."""
    train(stage_of(Mixed), (2,), split=False, wanted=True)
    with pytest.raises(UserError, match=r"layer 'layer 1' uses the weight of an nn\.Linear besides"):
        train(stage_of(Mixed), (2,), split=True, wanted=True)


@pytest.mark.parametrize("compiled", [torch.compile, lambda module: module.compile() or module])
def test_what_is_compiled_cannot_be_split(compiled: Callable[[nn.Module], nn.Module]) -> None:
    stage = stage_of(lambda: compiled(nn.Linear(WIDTH, WIDTH)))
    with pytest.raises(UserError, match="layer 'layer 1' is compiled"):
        _ = stage.deferral
