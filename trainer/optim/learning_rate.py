"""Learning rates over the steps of a run."""

import math

import torch

from trainer.config.schema import LRScheduleConfig


def learning_rate(peak: float, schedule: LRScheduleConfig, step: int, steps: int) -> float:
    """Return the learning rate of a step.

    Args:
        peak: The largest learning rate.
        schedule: The warm-up and decay.
        step: The step, from 1.
        steps: The last step; a decay ends there at `schedule.final * peak`.
    """
    if step <= schedule.warmup:
        return peak * step / schedule.warmup
    if schedule.name == "constant":
        return peak
    progress = (step - schedule.warmup) / max(1, steps - schedule.warmup)
    left = 1 - progress if schedule.name == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return peak * (schedule.final + (1 - schedule.final) * left)


def set_learning_rates(
    optimizer: torch.optim.Optimizer, schedule: LRScheduleConfig, step: int, steps: int
) -> None:
    """Set the learning rates of all groups of an optimizer from `build_optimizer` to those of a step.

    Args:
        optimizer: The optimizer.
        schedule: The warm-up and decay.
        step: The step, from 1.
        steps: The last step.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(group["peak"], schedule, step, steps)
