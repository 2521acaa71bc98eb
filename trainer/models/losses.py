"""Losses by import path, as a sum and a count."""

import inspect
from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn

from trainer.activation import Activation, flatten
from trainer.config.import_path import call, load
from trainer.config.schema import LossConfig
from trainer.errors import UserError
from trainer.models.gpt import MASKED
from trainer.models.model import Loss

_KEY = "loss.target"


def build_loss(config: LossConfig) -> Loss | None:
    """Return the configured loss; None where the model's own is to be used.

    A class is built with the options; a function is called with them each time. What counts its terms is
    used as it is. Losses in the manner of torch's, with a `reduction`, add their terms.

    Raises:
        UserError: The target cannot be imported or called.
    """
    if config.target is None:
        return None
    target = load(config.target, _KEY)
    made = call(target, config.target, _KEY, **config.options) if isinstance(target, type) else target
    if hasattr(made, "count"):
        return cast(Loss, made)
    if not callable(made):
        raise UserError(f"{_KEY}={config.target} makes a {type(made).__name__}, which is nothing to call")
    options = {} if isinstance(target, type) else dict(config.options)
    if isinstance(made, nn.Module):
        if isinstance(getattr(made, "reduction", None), str):
            vars(made)["reduction"] = "sum"
        return SummedModule(made)
    if "reduction" in _parameters(made):
        options["reduction"] = "sum"
    return Summed(made, options)


class Summed:
    """A function of output and target that returns the sum of its terms.

    Args:
        function: The function.
        options: Its keyword arguments.
    """

    def __init__(self, function: Callable[..., Tensor], options: dict[str, Any]) -> None:
        self._function = function
        self._options = options

    def count(self, target: Activation) -> float:
        """Return the number of terms."""
        return terms(target, self._options.get("ignore_index", MASKED), self._options.get("weight"))

    def __call__(self, output: Activation, target: Activation) -> Tensor:
        """Return the sum."""
        return self._function(output, target, **self._options)


class SummedModule(nn.Module):
    """The same for a module, whose parameters train.

    Args:
        module: The module.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def count(self, target: Activation) -> float:
        """Return the number of terms."""
        weight = getattr(self.module, "weight", None)
        return terms(target, getattr(self.module, "ignore_index", MASKED), weight)

    def forward(self, output: Activation, target: Activation) -> Tensor:
        """Return the sum."""
        loss: Tensor = self.module(output, target)
        return loss


def terms(target: Activation, ignored: int, weight: Tensor | None) -> float:
    """Return the number of terms of a loss, as torch's means divide by it.

    Args:
        target: Whole numbers are classes, each a term; others are a term each, element by element.
        ignored: The class that is left out.
        weight: Of every class; None: 1.
    """
    first = flatten(target)[0][0]
    if first.is_floating_point() or first.is_complex():
        return float(first.numel())
    taken = first[first != ignored]
    return float(len(taken)) if weight is None else float(weight.cpu()[taken.cpu()].sum())


def _parameters(function: Callable[..., Any]) -> Any:
    try:
        return inspect.signature(function).parameters
    except ValueError:  # some functions written in C have none
        return {}
