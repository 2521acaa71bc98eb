"""Optimizers by import path."""

from collections.abc import Sequence
from typing import Any

import torch

Groups = Sequence[dict[str, Any]]


def rmsprop(groups: Groups, lr: float) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(_plain(groups), lr=lr, momentum=0.5, centered=True)


def nadam(groups: Groups, lr: float) -> torch.optim.Optimizer:
    return torch.optim.NAdam(_plain(groups), lr=lr)


def adagrad(groups: Groups, lr: float) -> torch.optim.Optimizer:
    return torch.optim.Adagrad(_plain(groups), lr=lr)


def own(groups: Groups, lr: float) -> torch.optim.Optimizer:
    return Own(_plain(groups), {"lr": lr, "weight_decay": 0.0, "step": 0, "drift": 0.0})


def _plain(groups: Groups) -> list[dict[str, Any]]:
    return [{key: value for key, value in group.items() if key != "fused"} for group in groups]


class Own(torch.optim.Optimizer):
    """Counts its steps by group, and keeps a mean of the gradients' signs by parameter, in a list."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["step"] += 1
            group["drift"] = 0.9 * group["drift"] + 0.1
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                history = self.state[parameter].setdefault("history", [])
                history.append(parameter.grad.clone())
                del history[:-2]
                mean = sum(history[1:], history[0]) / len(history)
                parameter.add_(mean, alpha=-group["lr"] * group["drift"] / group["step"])
