"""The optimizers that a configuration can choose, each built from its settings and parameter groups.

torch's variants of an optimizer differ in their last bits, so every rank and every layout uses the same one.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from trainer.config.import_path import call, load
from trainer.config.schema import AdamWConfig, CustomOptimizerConfig, SGDConfig
from trainer.errors import UserError
from trainer.optim.modes import has_modes

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
        UserError: The target cannot be imported or called, or its steps need a closure.
    """
    path, key = config.target, "optimizer.target"
    target = load(path, key)
    if _requires_closure(getattr(target, "step", None)):  # such as LBFGS, which does not even take groups
        raise _needs_closure(path)
    try:
        optimizer: torch.optim.Optimizer = call(target, path, key, groups, lr=config.lr, **config.options)
    except (TypeError, ValueError) as error:
        raise UserError(f"{key}={path} does not take these parameters and options: {error}") from error
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UserError(
            f"{key}={path} returned {type(optimizer).__name__}: it must return a torch.optim.Optimizer"
        )
    if _requires_closure(optimizer.step) or _fails_without_closure(config, target):
        raise _needs_closure(path)
    return optimizer


def _requires_closure(step: Any) -> bool:
    """Return whether a method `step` has a closure among its parameters, without a default."""
    try:
        parameters = inspect.signature(step).parameters
    except (TypeError, ValueError):
        return False
    return "closure" in parameters and parameters["closure"].default is inspect.Parameter.empty


def _fails_without_closure(config: CustomOptimizerConfig, target: Any) -> bool:
    """Return whether a step on a few weights fails, but works with a closure, such as that of SAM."""

    def step(*closure: Any) -> bool:
        weight = torch.nn.Parameter(torch.ones(2, 2))
        weight.grad = torch.ones(2, 2)
        group = {"params": [weight], "lr": config.lr, "weight_decay": config.weight_decay}
        try:
            trial = target([group], lr=config.lr, **config.options)
            if has_modes(trial):
                trial.train()
            trial.step(*closure)
        except Exception:
            return False
        return True

    return not step() and step(lambda: torch.ones((), requires_grad=True))


def _needs_closure(path: str) -> UserError:
    return UserError(
        f"optimizer.target={path} takes steps that evaluate the loss again, through a closure; a step of "
        "this trainer evaluates it once: take an optimizer whose step() needs no closure"
    )
