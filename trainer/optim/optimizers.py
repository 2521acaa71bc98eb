"""The optimizers that a configuration can choose, each built from its settings and parameter groups.

torch's variants of an optimizer differ in their last bits, so every rank and every layout uses the same one.
"""

from collections.abc import Sequence
from typing import Any

import torch

from trainer.config.import_path import load
from trainer.config.schema import AdamWConfig, CustomOptimizerConfig, SGDConfig

Groups = Sequence[dict[str, Any]]


def adamw(config: AdamWConfig, groups: Groups) -> torch.optim.Optimizer:
    """Return torch's AdamW."""
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW(groups, lr=config.lr, betas=betas, eps=config.epsilon, fused=True)


def sgd(config: SGDConfig, groups: Groups) -> torch.optim.Optimizer:
    """Return torch's SGD."""
    return torch.optim.SGD(
        groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=True
    )


def custom(config: CustomOptimizerConfig, groups: Groups) -> torch.optim.Optimizer:
    """Return the optimizer that the configured target builds from the groups.

    Raises:
        UserError: The target cannot be imported.
    """
    target = load(config.target, "optimizer.target")
    optimizer: torch.optim.Optimizer = target(groups, lr=config.lr, **config.options)
    return optimizer
