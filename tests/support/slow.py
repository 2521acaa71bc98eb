"""A GPT whose layers sleep for random times, different in every run, so that ranks drift apart."""

import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from trainer.config.schema import GPTConfig
from trainer.data.dataset import Data
from trainer.models.gpt import gpt
from trainer.models.model import Layer, Model

_CHANCE = random.SystemRandom()
_LONGEST = 0.005  # seconds


def slowed_at_random(data: Data, **options: Any) -> Model:
    model = gpt(GPTConfig(**options), data)
    return replace(model, layers=tuple(_slowed(layer) for layer in model.layers))


def _slowed(layer: Layer) -> Layer:
    def build() -> nn.Module:
        module = layer.build()
        module.register_forward_hook(_sleep_now_and_in_backward)
        return module

    return replace(layer, build=build)


def _sleep_now_and_in_backward(module: nn.Module, inputs: Any, output: Tensor) -> None:
    if not output.is_meta:
        _sleep()
        if output.requires_grad:
            output.register_hook(lambda _: _sleep())


def _sleep() -> None:
    time.sleep(_CHANCE.uniform(0, _LONGEST))


def slowed(data: Data, seconds: float, **options: Any) -> Model:
    """Return a GPT whose layers sleep for some seconds while the working directory has a file `slow`."""
    model = gpt(GPTConfig(**options), data)
    wanted = Path("slow").absolute()

    def sleep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        if not output.is_meta and wanted.exists():
            time.sleep(seconds)

    def slow(layer: Layer) -> Layer:
        def build() -> nn.Module:
            module = layer.build()
            module.register_forward_hook(sleep)
            return module

        return replace(layer, build=build)

    return replace(model, layers=tuple(slow(layer) for layer in model.layers))
