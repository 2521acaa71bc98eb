"""Builders of the choices in `tests.toys.declared`."""

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tests.toys.declared import ToyDataConfig, ToyModelConfig, ToyOptimizerConfig
from trainer.data.binary import Labelled
from trainer.data.dataset import Data
from trainer.errors import UserError
from trainer.models.model import Layer, Model
from trainer.models.simplenet import BinaryLoss

BETWEEN = {"tanh": nn.Tanh, "relu": nn.ReLU}


def network(config: ToyModelConfig, data: Data) -> Model:
    sizes = [2, *[config.width] * (config.depth - 1), 1]
    layers: list[Layer] = []
    for i in range(config.depth):
        layers.append(Layer(f"linear{i}", partial(nn.Linear, sizes[i], sizes[i + 1])))
        layers.append(Layer(f"{config.between}{i}", BETWEEN[config.between]))
    return Model(tuple(layers[:-1]), BinaryLoss())


def prepare(config: ToyDataConfig) -> None:
    if Path(config.file).suffix != ".npy":
        raise UserError(f"data.file={config.file} must end in .npy")
    points = np.random.default_rng(0).standard_normal((config.points, 2), dtype=np.float32)
    np.save(config.file, points)


def load(config: ToyDataConfig) -> Data:
    points = np.load(config.file)
    labels = (points.prod(axis=1) > 0).astype(np.float32)
    held_out = len(points) // 4
    return Data(
        training=Labelled(points[held_out:], labels[held_out:]),
        validation=Labelled(points[:held_out], labels[:held_out]),
        fingerprint=hashlib.sha256(points.tobytes()).hexdigest(),
    )


class SignDescent(torch.optim.Optimizer):
    def __init__(self, groups: Sequence[dict[str, Any]], lr: float, memory: float) -> None:
        super().__init__(groups, {"lr": lr, "memory": memory})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                total = self.state[parameter].setdefault("sum", torch.zeros_like(parameter))
                total.mul_(group["memory"]).add_(parameter.grad)
                parameter.sub_(group["lr"] * total.sign())


def sign_descent(config: ToyOptimizerConfig, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
    return SignDescent(groups, config.lr, config.memory)
