"""Three layers with a tied weight and with statistics, trained, for tests of checkpoints."""

import torch
from torch import nn

from trainer.checkpoint.schema import Progress
from trainer.models.model import Layer, Tie
from trainer.pipeline.build import build_layer
from trainer.pipeline.layer import BuiltLayer

CPU = torch.device("cpu")
LAYERS = (
    Layer("first", lambda: nn.Linear(3, 3)),
    Layer("norm", lambda: nn.BatchNorm1d(3)),
    Layer("last", lambda: nn.Linear(3, 3), (Tie("weight", "first", "weight"),)),
)
PROGRESS = Progress(
    step=7,
    samples=70,
    seed=1,
    optimizer="adamw",
    versions={"torch": torch.__version__},
    data="a1b2",
    loss_scale={"value": 2.0**15, "good_steps": 3},
)


def built(seed: int) -> list[BuiltLayer]:
    return [build_layer(LAYERS, index, seed, CPU) for index in range(len(LAYERS))]


def optimizer_of(layers: list[BuiltLayer]) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for layer in layers for p in layer.module.parameters()], lr=0.1)


def train(layers: list[BuiltLayer], optimizer: torch.optim.Optimizer) -> None:
    """Take a step in which the copies of a tied parameter have equal gradients."""
    first, norm, last = (layer.module for layer in layers)
    optimizer.zero_grad()
    last(norm(first(torch.arange(12.0).reshape(4, 3).sin()))).square().sum().backward()
    total = first.weight.grad + last.weight.grad
    first.weight.grad, last.weight.grad = total, total.clone()
    optimizer.step()


def numbers(layers: list[BuiltLayer]) -> list[torch.Tensor]:
    return [tensor.clone() for layer in layers for tensor in layer.module.state_dict().values()]


def equal(these: list[torch.Tensor], those: list[torch.Tensor]) -> bool:
    return all(torch.equal(this, that) for this, that in zip(these, those, strict=True))
