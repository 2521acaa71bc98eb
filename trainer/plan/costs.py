"""The cost of every layer, without building the model: each layer runs on torch's meta device.

Meta tensors have shapes but no data, so even a model larger than the host takes only moments. Operations of
matrix products, convolutions and attention are counted by torch's formulas (a multiplication and an addition
are two; causal attention counts as if every position attended to all others). Everything else (norms,
activation functions, dropout, lookups) costs the bytes that it reads and writes: see `FLOPS_PER_BYTE`.

All of it happens in a fork of this process. A forward on the meta device would otherwise leave meta tensors
wherever custom code keeps tensors (caches, class attributes, globals), use up random numbers, and empty
modules that exist already: no search for traces finds them all. Forking takes milliseconds. It is safe, also
after MPI has started, because the fork neither communicates nor computes on several threads: see
`trainer.distributed.aside`.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module

import torch

from trainer.activation import Activation, ActivationSpec, flatten, spec_of
from trainer.distributed.aside import run_aside
from trainer.models.model import Model
from trainer.plan.layer_cost import FLOPS_PER_BYTE, LayerCost
from trainer.plan.survey import Costed, Key, LossCost, Survey, guess
from trainer.plan.trial import Weights

__all__ = ["FLOPS_PER_BYTE", "LayerCost", "layer_costs", "notes"]

_META_KERNELS = "torch.fx.experimental.symbolic_shapes"  # they import it: once here, not in every fork
_PATIENCE = 60.0  # seconds for one layer
_MOST_DEATHS = 2  # then the rest is guessed
_SHOWN = 3  # layers named in a note


def layer_costs(
    model: Model,
    inputs: Activation,
    compute: torch.dtype = torch.float32,
    targets: Activation = None,
    *,
    patience: float = _PATIENCE,
) -> list[LayerCost]:
    """Return the cost of each layer.

    A layer that cannot run on the meta device (for instance, because its shapes depend on its data) is
    counted on the CPU if it is small, or else guessed as a product with its parameters that keeps the shape;
    its cost carries a warning. Layers that share one `build` and take the same types and shapes, such as a
    transformer's blocks, run once.

    Args:
        model: The model; the time of its loss is not counted.
        inputs: The first layer's inputs, of a full micro-batch; only their types and shapes matter.
        compute: The type that layers compute in. All of their float32 counts as this type, except for the
            accumulated gradients. Autocast would keep some of it, but does not support the meta device.
        targets: The targets of a micro-batch; only their types and shapes matter. The loss's saved tensors
            are not counted without targets, or if the loss does not run on the meta device.
        patience: The seconds after which a layer that neither returns nor raises is guessed.

    Raises:
        UserError: Two layers share a parameter without declaring it.
        Exception: What the `build` of a layer raises.
    """
    import_module(_META_KERNELS)
    counted = _Counted(model, spec_of(*flatten(inputs)))
    survey = Survey(model, inputs, compute, targets, counted.known)
    for deaths in range(1, _MOST_DEATHS + 1):
        outcome = run_aside(partial(survey.run, start=len(counted.costs), taken=counted.taken), patience)
        counted.weights = Weights()
        for value in outcome.sent:
            counted.add(value)
        if outcome.died is None:
            break
        counted.guess(outcome.died)
        while deaths == _MOST_DEATHS and len(counted.costs) < len(model.layers):
            counted.guess(outcome.died)
    return counted.costs


class _Counted:
    """The costs so far.

    Args:
        model: The model.
        taken: What the first layer takes.
    """

    def __init__(self, model: Model, taken: ActivationSpec) -> None:
        self._model = model
        self.taken = taken  # by the next layer
        self.weights = Weights()  # of the next layer, if its trial has begun
        self.costs: list[LayerCost] = []
        self.known: dict[Key, Costed] = {}

    def add(self, value: Weights | Costed | LossCost) -> None:
        """Add what a survey has sent."""
        if isinstance(value, Weights):
            self.weights = value
        elif isinstance(value, LossCost):
            saved = {mode: size + value.saved_bytes for mode, size in self.costs[-1].saved_bytes.items()}
            self.costs[-1] = replace(self.costs[-1], saved_bytes=saved, loss_writes=value.writes)
        else:
            layer = self._model.layers[len(self.costs)]
            self.known[id(layer.build), self.taken] = value
            self.costs.append(value.cost)
            self.taken, self.weights = value.outputs, Weights()

    def guess(self, died: str) -> None:
        """Guess the next layer, if there is one, whose trial did not end."""
        if len(self.costs) < len(self._model.layers):
            name = self._model.layers[len(self.costs)].name
            self.add(guess(name, self.weights, self.taken, f"does not end on the meta device ({died})"))


def notes(costs: Sequence[LayerCost]) -> list[str]:
    """Return a line for each kind of warning among the costs, with the layers that it concerns."""
    kinds: dict[str, list[LayerCost]] = {}
    for cost in costs:
        if cost.warning is not None:
            kinds.setdefault(cost.warning.partition(": ")[0] + _error_type(cost.warning), []).append(cost)
    return [f"{_names(alike)}: {alike[0].warning}" for alike in kinds.values()]


def _error_type(warning: str) -> str:
    return warning.partition("(")[2].partition(":")[0]


def _names(costs: list[LayerCost]) -> str:
    names = [cost.name for cost in costs[:_SHOWN]]
    more = [f"{len(costs) - _SHOWN} more"] if len(costs) > _SHOWN else []
    *others, last = names + more
    return f"layers {', '.join(others)} and {last}" if others else f"layer {last}"
