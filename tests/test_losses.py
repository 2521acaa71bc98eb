"""Losses by import path: their sum, divided by their count, is torch's mean."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.config.schema import LossConfig
from trainer.errors import UserError
from trainer.models.losses import build_loss

torch.manual_seed(0)
LOGITS, CLASSES = torch.randn(6, 4), torch.tensor([0, 3, 1, -100, 2, 2])
X, Y = torch.randn(6, 3), torch.randn(6, 3)

LIKE_TORCH: dict[str, tuple[str, dict[str, Any], Tensor, Tensor, Callable[[], Tensor]]] = {
    "classes": ("torch.nn:CrossEntropyLoss", {}, LOGITS, CLASSES, lambda: F.cross_entropy(LOGITS, CLASSES)),
    "smoothed": (
        "torch.nn:CrossEntropyLoss",
        {"label_smoothing": 0.1, "ignore_index": 2},
        LOGITS,
        CLASSES.clamp(0),
        lambda: F.cross_entropy(LOGITS, CLASSES.clamp(0), label_smoothing=0.1, ignore_index=2),
    ),
    "a function": (
        "torch.nn.functional:cross_entropy",
        {"ignore_index": 2},
        LOGITS,
        CLASSES.clamp(0),
        lambda: F.cross_entropy(LOGITS, CLASSES.clamp(0), ignore_index=2),
    ),
    "squares": ("torch.nn:MSELoss", {}, X, Y, lambda: F.mse_loss(X, Y)),
    "a function of numbers": (
        "torch.nn.functional:smooth_l1_loss",
        {"beta": 0.5},
        X,
        Y,
        lambda: F.smooth_l1_loss(X, Y, beta=0.5),
    ),
}


@pytest.mark.parametrize("name", LIKE_TORCH)
def test_the_mean_is_torchs(name: str) -> None:
    target, options, output, wanted, mean = LIKE_TORCH[name]
    loss = build_loss(LossConfig(target=target, options=options))
    assert loss is not None
    assert torch.allclose(loss(output, wanted) / loss.count(wanted), mean())


class Weighted(nn.CrossEntropyLoss):
    """Classes count differently."""

    def __init__(self) -> None:
        super().__init__(weight=torch.tensor([1.0, 2.0, 0.5, 4.0]))


class Learned(nn.Module):
    """A temperature that trains."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output * self.scale, target, reduction="sum")


class Counts:
    """A loss as the trainer takes it."""

    def count(self, target: Any) -> float:
        return 7.0

    def __call__(self, output: Any, target: Any) -> Tensor:
        return output.sum()


class Silent:
    """Nothing to call."""


def test_weights_of_classes() -> None:
    loss = build_loss(LossConfig(target="tests.test_losses:Weighted"))
    assert loss is not None
    assert torch.allclose(loss(LOGITS, CLASSES) / loss.count(CLASSES), Weighted()(LOGITS, CLASSES))


def test_parameters_of_a_loss() -> None:
    loss = build_loss(LossConfig(target="tests.test_losses:Learned"))
    assert isinstance(loss, nn.Module)
    assert [name for name, _ in loss.named_parameters()] == ["module.scale"]
    assert loss.count(CLASSES) == 5


def test_what_counts_its_terms_is_used_as_it_is() -> None:
    loss = build_loss(LossConfig(target="tests.test_losses:Counts"))
    assert isinstance(loss, Counts)
    assert build_loss(LossConfig()) is None


REFUSED = {
    "torch.nn:CrosEntropyLoss": "'torch.nn' has no 'CrosEntropyLoss'; did you mean 'CrossEntropyLoss'?",
    "tests.test_losses:Silent": "makes a Silent, which is nothing to call",
}


@pytest.mark.parametrize("target", REFUSED)
def test_refusals(target: str) -> None:
    with pytest.raises(UserError, match=re.escape(REFUSED[target])):
        build_loss(LossConfig(target=target))
