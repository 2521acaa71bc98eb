"""Layers that keep something: buffers that forwards change, parametrisations, statistics, hooks, caches."""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.generated.carriers import Extras


class MovingMean(nn.Module):
    """A mean that moves with every training forward, and is used in it."""

    def __init__(self, width: int, how: str) -> None:
        super().__init__()
        self.how = how
        self.scale = nn.Parameter(torch.ones(width))
        self.register_buffer("mean", None if how == "late" else torch.zeros(width), how != "fleeting")
        self.other = nn.Module()
        if how == "shared":
            self.other.register_buffer("mean", self.mean)

    def forward(self, x: Tensor, extras: Extras) -> Tensor:
        new = x.detach().float().reshape(-1, x.shape[-1]).mean(0)
        if self.training:
            if self.mean is None:
                self.mean = new
            elif self.how == "replaced":
                self.mean = 0.9 * self.mean + 0.1 * new
            else:
                self.mean.mul_(0.9).add_(new, alpha=0.1)
        mean = torch.zeros_like(new) if self.mean is None else self.mean
        if self.how == "shared":
            mean = mean + self.other.mean
        return (x - mean.to(x.dtype)) * self.scale.to(x.dtype)


class Counter(nn.Module):
    """Counts its calls in a buffer, and computes with the count."""

    def __init__(self, width: int, evaluating: bool) -> None:
        super().__init__()
        self.evaluating = evaluating
        self.linear = nn.Linear(width, width)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor, extras: Extras) -> Tensor:
        if self.training or self.evaluating:
            self.calls += 1
        return self.linear(x) / (1 + 0.1 * self.calls.item())


class Codebook(nn.Module):
    """The nearest of some vectors, which move towards what they are nearest to: vector quantisation."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.register_buffer("book", torch.randn(size, width))
        self.register_buffer("uses", torch.zeros(size))

    def forward(self, x: Tensor, extras: Extras) -> Tensor:
        flat = self.linear(x).float().reshape(-1, x.shape[-1])
        nearest = torch.cdist(flat.detach(), self.book).argmin(1)
        chosen = self.book[nearest]
        if self.training:
            with torch.no_grad():
                hot = nn.functional.one_hot(nearest, len(self.book)).float()
                self.uses.add_(hot.sum(0))
                self.book.lerp_(hot.T @ flat / hot.sum(0).clamp(min=1)[:, None], 0.1)
        return (flat + (chosen - flat).detach() + 0.1 * chosen).reshape(x.shape).to(x.dtype)


class Normalised(nn.Module):
    """A product whose weight is parametrised."""

    def __init__(self, width: int, kind: str) -> None:
        super().__init__()
        wrap = {
            "spectral": parametrizations.spectral_norm,
            "weight": parametrizations.weight_norm,
            "orthogonal": parametrizations.orthogonal,
            "old spectral": nn.utils.spectral_norm,
            "old weight": nn.utils.weight_norm,
        }[kind]
        self.linear = wrap(nn.Linear(width, width))

    def forward(self, x: Tensor, extras: Extras) -> Tensor:
        return torch.tanh(self.linear(x))


class BatchNorm(nn.Module):
    """Batch normalisation of vectors, of sequences or of images, within a convolution or alone."""

    def __init__(self, width: int, image: bool, momentum: float | None, fixed: str) -> None:
        super().__init__()
        make = nn.BatchNorm2d if image else nn.BatchNorm1d
        self.norm = make(width, momentum=momentum, affine=fixed != "plain")
        self.fixed = fixed
        if fixed == "weights":
            self.requires_grad_(False)
        if fixed in ("mode", "both"):
            self.norm.running_mean.normal_()
            self.norm.running_var.uniform_(0.5, 2.0)
        if fixed == "both":
            self.requires_grad_(False)

    def train(self, mode: bool = True) -> "BatchNorm":
        super().train(mode)
        if self.fixed in ("mode", "both"):
            self.norm.eval()
        return self

    def forward(self, x: Tensor, extras: Extras) -> Tensor:
        if x.dim() == 3:
            return self.norm(x.transpose(1, 2)).transpose(1, 2)
        return self.norm(x)


class Hooked(nn.Module):
    """Hooks on modules, on weights and on tensors."""

    def __init__(self, width: int, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.linear = nn.Linear(width, width)
        if kind == "forward":
            self.linear.register_forward_hook(lambda module, given, result: result * 1.5)
        elif kind == "before":
            self.linear.register_forward_pre_hook(lambda module, given: (given[0] + 0.5,))
        elif kind == "backward":
            self.linear.register_full_backward_hook(_soften)
        elif kind == "weight":
            self.linear.weight.register_hook(lambda gradient: gradient.clamp(-0.1, 0.1))
        elif kind == "accumulated":
            self.linear.weight.register_post_accumulate_grad_hook(_halve)

    def forward(self, x: Tensor, extras: Extras) -> Tensor:
        y = self.linear(x)
        if self.kind == "tensor" and y.requires_grad:
            y.register_hook(lambda gradient: gradient * 2)
        return torch.tanh(y)


def _soften(module: nn.Module, into: tuple[Tensor | None, ...], out: object) -> tuple[Tensor | None, ...]:
    return tuple(None if gradient is None else gradient * 0.5 for gradient in into)


def _halve(weight: Tensor) -> None:
    assert weight.grad is not None
    weight.grad *= 0.5


class Cached(nn.Module):
    """A table made in the first forward and kept as an attribute."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.table: dict[tuple[int, ...], Tensor] = {}

    def forward(self, x: Tensor, extras: Extras) -> Tensor:
        shape = tuple(x.shape[1:])
        if shape not in self.table:
            self.table[shape] = torch.linspace(0, 1, x[0].numel() if len(x) else 1, device=x.device)
        table = self.table[shape]
        return self.linear(x) + (table.view(shape).to(x.dtype) if len(x) else 0)
