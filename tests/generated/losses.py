"""Losses: sums with counts of many kinds; some have parameters, draw, or write into what they get."""

import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.generated.carriers import unpack
from tests.generated.data import IGNORED


def loss(kind: str, classes: int, fault: str) -> Any:
    """Return a loss."""
    if fault == "mean":
        return Mean()
    if fault == "not a scalar":
        return NoScalar()
    made = {"learnt": Learnt, "centres": lambda: Centres(classes), "weighted": Weighted, "entropy": Entropy}
    return (
        made[kind]() if kind in made else (Classes(kind) if kind in ("masked", "target") else Squares(kind))
    )


class Squares:
    """The sum of squares; counts numbers or samples."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def count(self, target: Any) -> int:
        return target.numel() if self.kind == "squares" else len(target)

    def __call__(self, output: Any, target: Any) -> Tensor:
        y, _ = unpack(output)
        if self.kind == "in place":
            y -= target
            return y.square().sum()
        if self.kind == "noise":
            y = y + 0.1 * torch.randn_like(y) + random.random()
        if self.kind == "double":
            return (y.double() - target).square().sum().reshape(1)
        return (y - target).square().sum()


class Classes:
    """Cross entropy, of what is not masked; there may be nothing."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def count(self, target: Any) -> float:
        return float((target != IGNORED).sum())

    def __call__(self, output: Any, target: Any) -> Tensor:
        y, _ = unpack(output)
        if self.kind == "target":
            masked = target == IGNORED
            target[masked] = 0
            y[masked] = 0
            terms = F.cross_entropy(y.flatten(0, -2), target.flatten(), reduction="none")
            return (terms * ~masked.flatten()).sum()
        return F.cross_entropy(y.flatten(0, -2), target.flatten(), ignore_index=IGNORED, reduction="sum")


class Weighted:
    """Squares with weights; its count is not whole."""

    def count(self, target: Any) -> Tensor:
        return target["weight"][0].sum()

    def __call__(self, output: Any, target: Any) -> Tensor:
        y, _ = unpack(output)
        return ((y - target["y"]).square().mean(-1) * target["weight"][0]).sum()


class Entropy:
    def count(self, target: Any) -> int:
        return target[0].numel()

    def __call__(self, output: Any, target: Any) -> Tensor:
        y, _ = unpack(output)
        return F.cross_entropy(y.flatten(0, -2), target[0].flatten(), reduction="sum")


class Learnt(nn.Module):
    """Squares, with a precision that is learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.log_precision = nn.Parameter(torch.zeros(()))

    def count(self, target: Any) -> int:
        return target.numel()

    def forward(self, output: Any, target: Any) -> Tensor:
        y, _ = unpack(output)
        return (self.log_precision.exp() * (y - target).square() - self.log_precision).sum()


class Centres(nn.Module):
    """The distance from learnt centres, with dropout."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.centres = nn.Embedding(classes, classes)
        self.dropout = nn.Dropout(0.2)

    def count(self, target: Any) -> float:
        return float((target != IGNORED).sum())

    def forward(self, output: Any, target: Any) -> Tensor:
        y, _ = unpack(output)
        seen = target != IGNORED
        return (self.dropout(y)[seen] - self.centres(target[seen])).square().sum()


class Mean(Squares):
    def __init__(self) -> None:
        super().__init__("squares")

    def __call__(self, output: Any, target: Any) -> Tensor:
        return super().__call__(output, target) / max(1, target.numel())


class NoScalar(Squares):
    def __init__(self) -> None:
        super().__init__("squares")

    def __call__(self, output: Any, target: Any) -> Tensor:
        y, _ = unpack(output)
        return (y - target).square().flatten()[:2]
