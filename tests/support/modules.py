"""Modules that use weights in many ways, each a case for split backwards."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from trainer.models.deferring import defer

WIDTH = 24


class Function(nn.Module):
    """A module that applies a function to its input and its parts."""

    def __init__(self, function: Callable[..., Tensor], *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self._function = function

    def forward(self, x: Tensor) -> Tensor:
        return self._function(x, *self.parts)


def linear(**options: Any) -> nn.Linear:
    return nn.Linear(WIDTH, WIDTH, **options)


def three_times(x: Tensor, part: nn.Module) -> Tensor:
    return part(part(x).tanh()) + part(x)


def used_besides(x: Tensor, part: nn.Linear) -> Tensor:
    return part(x) * part.weight[0]


def two_ways(x: Tensor, part: nn.Linear) -> Tensor:
    """Use the weight twice: as it is, and transposed."""
    return part(x).tanh() @ part.weight


class Derived(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * 2, self.bias)


def shared() -> nn.Module:
    """Two linear maps with one weight."""
    one, other = linear(), linear()
    other.weight = one.weight
    return nn.Sequential(one, nn.Tanh(), other)


class Conv1D(nn.Module):
    """The linear map of Hugging Face's GPT-2: `transformers.pytorch_utils.Conv1D`."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, 2 * WIDTH))
        self.bias = nn.Parameter(torch.rand(2 * WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        size_out = (*x.size()[:-1], 2 * WIDTH)
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(size_out)[..., :WIDTH]


class Scaled(Conv1D):
    """`addmm` with factors, which backward splitting does not support."""

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.flatten(0, -2), self.weight, beta=0.5, alpha=2.0)
        return flat[:, :WIDTH].view(x.shape)


class Scale(torch.autograd.Function):
    """A custom function: multiplies by a weight, whose gradient it defers."""

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

        later = defer(ctx.weight, of_weight)
        return gradient * ctx.weight, None if later else of_weight()


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return Scale.apply(x, self.weight)


def frozen(module: nn.Module, *names: str) -> nn.Module:
    for name in names:
        module.get_parameter(name).requires_grad_(False)
    return module


def hooked(module: nn.Linear) -> nn.Module:
    """Halve the weight's gradient in a hook, as masking or clipping would."""
    module.weight.register_hook(lambda gradient: gradient / 2)
    return module


def turned(module: nn.Linear) -> nn.Module:
    """Store the weight column by column."""
    module.weight = nn.Parameter(module.weight.detach().t().contiguous().t())
    return module


Build = Callable[[], nn.Module]

# Each module, with the number of its parameters whose gradients are computed in the second part.
ON_VECTORS: dict[str, tuple[Build, int]] = {
    "linear": (linear, 2),
    "no bias": (partial(linear, bias=False), 1),
    "three times": (lambda: Function(three_times, linear()), 2),
    "shared": (shared, 3),
    "followed by in-place": (lambda: nn.Sequential(linear(), nn.ReLU(inplace=True)), 2),
    "transformers' Conv1D": (Conv1D, 2),
    "non-contiguous input": (
        lambda: Function(lambda x, part: part(x.transpose(0, -2)).transpose(0, -2), linear(bias=False)),
        1,
    ),
    "by columns": (lambda: turned(linear()), 2),
    "weight frozen": (lambda: frozen(linear(), "weight"), 1),
    "bias frozen": (lambda: frozen(linear(), "bias"), 1),
    "own": (Own, 1),
    "derived": (lambda: Derived(WIDTH, WIDTH), 1),
    "parametrised": (lambda: parametrizations.weight_norm(linear()), 1),
    "used besides": (lambda: Function(used_besides, linear()), 1),
    "used in two ways": (lambda: Function(two_ways, linear()), 2),
    "hooked": (lambda: hooked(linear()), 1),
    "factors": (Scaled, 0),
    "norm": (lambda: nn.LayerNorm(WIDTH), 0),
    "checkpoint": (lambda: Function(lambda x, part: checkpoint(part, x, use_reentrant=False), linear()), 0),
    "reentrant checkpoint": (
        lambda: Function(
            lambda x, part: checkpoint(part, x.clone().requires_grad_(), use_reentrant=True), linear()
        ),
        0,
    ),
}
