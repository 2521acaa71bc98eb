"""From averaged gradients to new weights: the global norm, clipping, the learning rate, the optimizer."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.config import AdamWConfig, CustomOptimizerConfig, OptimizerConfig, RateConfig, SGDConfig
from trainer.imports import load
from trainer.pipeline.stage import BuiltLayer


def learning_rate(peak: float, rate: RateConfig, step: int, steps: int) -> float:
    """Return the learning rate of a step.

    Args:
        peak: The largest learning rate.
        rate: How it grows and decays.
        step: The step, from 1.
        steps: The last step; a decay ends there at `rate.final * peak`.
    """
    if step <= rate.warmup:
        return peak * step / rate.warmup
    if rate.name == "constant":
        return peak
    progress = (step - rate.warmup) / max(1, steps - rate.warmup)
    left = 1 - progress if rate.name == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return peak * (rate.final + (1 - rate.final) * left)


def build_optimizer(config: OptimizerConfig, layers: Sequence[BuiltLayer]) -> torch.optim.Optimizer | None:
    """Return the optimizer of a rank's parameters, or None where it has none to train.

    Weight decay leaves out biases and normalisation weights: everything of fewer than two dimensions.
    """
    parameters = [p for layer in layers for p in layer.module.parameters() if p.requires_grad]
    decayed = [p for p in parameters if p.dim() >= 2]  # noqa: PLR2004
    others = [p for p in parameters if p.dim() < 2]  # noqa: PLR2004
    groups: list[dict[str, Any]] = [
        {"params": members, "weight_decay": decay}
        for members, decay in ((decayed, config.weight_decay), (others, 0.0))
        if members
    ]
    return _optimizer(config, groups) if groups else None


def _optimizer(config: OptimizerConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    # The same variant on every rank and in every layout: variants differ in their last bits.
    if isinstance(config, AdamWConfig):
        betas = (config.beta1, config.beta2)
        return torch.optim.AdamW(groups, lr=config.lr, betas=betas, eps=config.epsilon, fused=True)
    if isinstance(config, SGDConfig):
        return torch.optim.SGD(
            groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=True
        )
    assert isinstance(config, CustomOptimizerConfig), config
    optimizer: torch.optim.Optimizer = load(config.target, "optimizer.target")(
        groups, lr=config.lr, **config.options
    )
    return optimizer


def gradient_norms(layers: Sequence[BuiltLayer]) -> NDArray[np.float64]:
    """Return the norm of the gradient of every parameter that the layers own and train, in order."""
    gradients = [p.grad for layer in layers for p in layer.trained() if p.grad is not None]
    if not gradients:
        return np.zeros(0)
    return torch.stack(torch._foreach_norm(gradients)).double().cpu().numpy()


def global_norm(norms: NDArray[np.float64]) -> float:
    """Return the norm of the whole gradient, summed in the one order of the model's parameters."""
    total = 0.0
    for norm in norms.tolist():
        total += norm * norm
    return math.sqrt(total)


def clip(gradients: Sequence[Tensor], norm: float, largest: float | None) -> None:
    """Scale gradients, in place, so that the whole gradient's norm is at most `largest`."""
    if largest is not None and norm > largest:
        torch._foreach_mul_(list(gradients), largest / norm)


def all_gradients(layers: Sequence[BuiltLayer]) -> list[Tensor]:
    """Return the gradients of all parameters of the layers, tied copies included."""
    return [p.grad for layer in layers for p in layer.module.parameters() if p.grad is not None]


def clear_gradients(layers: Sequence[BuiltLayer]) -> None:
    """Forget the gradients of the last step."""
    for layer in layers:
        for parameter in layer.module.parameters():
            parameter.grad = None
