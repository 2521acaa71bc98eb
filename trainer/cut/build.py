"""The configured module, cut into layers."""

from functools import partial
from typing import Any

import numpy as np
from torch import nn

from trainer.activation import Activation
from trainer.config.import_path import call, load
from trainer.config.schema import ModuleConfig
from trainer.cut.answers import call as call_model
from trainer.cut.blocks import find_blocks
from trainer.cut.model import cut
from trainer.cut.weights import RecordedWeights
from trainer.data.dataset import Data, as_tensors
from trainer.errors import UserError
from trainer.models.gpt import TokenLoss
from trainer.models.model import Model

_KEY = "model.target"


def module(config: ModuleConfig, data: Data) -> Model:
    """Return the module that the configured target makes, as layers.

    Its loss, where `loss.target` names no other, is the cross-entropy of classes in the last dimension.

    Raises:
        UserError: The target cannot be imported or called, does not return a module, or cannot be cut.
    """
    target = load(config.target, _KEY)

    def make() -> nn.Module:
        made = call(target, config.target, _KEY, **config.options)
        if not isinstance(made, nn.Module):
            raise UserError(f"model.target={config.target} returned {type(made).__name__}: not an nn.Module")
        return made

    example = as_tensors(data.training.inputs(np.zeros(1, dtype=np.int64)))
    weights = RecordedWeights(make)
    blocks = find_blocks(weights.skeleton, config.blocks, "model.blocks")
    return cut(weights, blocks, example, TokenLoss(), partial(_call, output=config.output))


def _call(model: nn.Module, inputs: Activation, *, output: str | None) -> Any:
    return entry(call_model(model, inputs), output)


def entry(output: Any, name: str | None) -> Any:
    """Return an entry or attribute of a model's output; all of it without a name.

    Raises:
        UserError: There is no such entry.
    """
    if name is None:
        return output
    if isinstance(output, dict) and name in output:
        return output[name]
    if isinstance(output, (tuple, list)) and name.isdecimal() and int(name) < len(output):
        return output[int(name)]
    if hasattr(output, name):
        return getattr(output, name)
    known = f"; it has {', '.join(map(str, output))}" if isinstance(output, dict) else ""
    raise UserError(f"model.output={name}: the output is a {type(output).__name__} without it{known}")
