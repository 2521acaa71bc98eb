"""Optimizers that train other weights than they evaluate, such as schedule-free ones.

Such an optimizer has two methods: `eval()` puts the weights to evaluate in place of those that train, and
`train()` puts them back, up to rounding. The trainer keeps copies instead, so that evaluation changes no bit
of the training.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def has_modes(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether an optimizer has the methods `train` and `eval`."""
    return all(callable(getattr(optimizer, name, None)) for name in ("train", "eval"))


@contextmanager
def evaluating(optimizer: torch.optim.Optimizer | None) -> Iterator[dict[nn.Parameter, Tensor]]:
    """Have the weights to evaluate in place of those that train, if the optimizer has both.

    Yields:
        Copies of the weights that train, by parameter; empty where these are the same.
    """
    if optimizer is None or not has_modes(optimizer):
        yield {}
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    training = {parameter: parameter.detach().clone() for parameter in parameters}
    optimizer.eval()  # type: ignore[attr-defined]
    try:
        yield training
    finally:
        optimizer.train()  # type: ignore[attr-defined]
        with torch.no_grad():
            for parameter, weight in training.items():
                parameter.copy_(weight)
