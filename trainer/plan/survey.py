"""The trials of all layers, one after another: what runs in the process aside that `layer_costs` starts.

A layer is tried in four ways, until one succeeds:

    [1] on the meta device, in the type that the run computes in
    [2] there in float32, with constants moved there from the CPU
    [3] on the CPU with made-up values, or the data's for the first layer, if the layer is small
    [4] guessed from its parameters
"""

import weakref
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from trainer.activation import Activation, ActivationSpec, TensorSpec, flatten, unflatten
from trainer.distributed.aside import Send
from trainer.errors import UserError
from trainer.models.all_steps import on_meta_device
from trainer.models.model import Layer, Model
from trainer.models.names import plain_parameters
from trainer.models.skeleton import build_skeleton, never_compile, skeleton
from trainer.pipeline.precision import Precision
from trainer.pipeline.recomputation import Recompute
from trainer.plan.layer_cost import LayerCost
from trainer.plan.saved_activations import saved_by_loss
from trainer.plan.trial import Together, Trial, Weights, Work

# The largest layer that is run on the CPU: less than a second there.
_MOST_BYTES = 1 << 28
_MOST_OPERATIONS = 10**10

# What torch says where a forward reads values without an operation, as `tolist` and `numpy` do.
_READS_VALUES = ("no data", "to numpy", "on meta tensors")

Key = tuple[int, ActivationSpec]  # a layer's `build`, and what it takes


@dataclass(frozen=True)
class Costed:
    """A layer's cost, and the types and shapes of what it returns."""

    cost: LayerCost
    outputs: ActivationSpec


@dataclass(frozen=True)
class LossCost:
    """What the loss adds to the last layer's cost."""

    saved_bytes: int
    writes: bool


@dataclass(frozen=True)
class _Built:
    """A layer, its module as `build` returned it, and its skeleton; the two may be the same."""

    layer: Layer
    module: nn.Module
    bare: nn.Module


class Survey:
    """The trials of a model's layers.

    Args:
        model: The model.
        inputs: The first layer's inputs.
        compute: The type that layers compute in.
        targets: The targets; None to leave out the loss.
        known: Trials made before; new ones are added.
    """

    def __init__(
        self,
        model: Model,
        inputs: Activation,
        compute: torch.dtype,
        targets: Activation,
        known: dict[Key, Costed],
    ) -> None:
        self._model = model
        self._inputs = inputs
        self._compute = compute
        self._targets = targets
        self._known = known
        self._has_gpu = torch.cuda.is_available()  # asked before the fork
        self._owners = _Owners()
        self._built: dict[int, _Built] = {}  # by `build`, until its last layer

    def run(self, send: Send, start: int, taken: ActivationSpec) -> None:
        """Try the layers from `start` on, the first of which takes `taken`.

        Sends `Weights` before the trial of a layer that is not known yet, `Costed` for every layer, and
        `LossCost` at the end.
        """
        never_compile()
        layers = self._model.layers
        last = {id(layer.build): index for index, layer in enumerate(layers)}
        for index in range(start, len(layers)):
            layer = layers[index]
            key = id(layer.build), taken
            if key not in self._known:
                self._known[key] = self._costed(layer, taken, send, first=index == 0)
            costed = self._known[key]
            send(replace(costed, cost=replace(costed.cost, name=layer.name)))
            if last[id(layer.build)] == index and (built := self._built.pop(id(layer.build), None)):
                of, built = built.layer, None
                if of is not layer:
                    self._owners.check_again(of, layer)
            taken = costed.outputs
        if self._targets is not None:
            self._try_loss(send, taken)

    def _costed(self, layer: Layer, taken: ActivationSpec, send: Send, *, first: bool) -> Costed:
        if id(layer.build) not in self._built:
            try:
                built = _Built(layer, *build_skeleton(layer))
            except Exception as error:
                # It uses the GPU, which only the process itself can. Without one, CUDA builds say so too.
                if self._has_gpu and torch.cuda._is_in_bad_fork():
                    return guess(layer.name, Weights(), taken, _reason(error))
                raise
            self._owners.claim(layer, built.module)
            self._built[id(layer.build)] = built
        built = self._built[id(layer.build)]
        with torch.no_grad(), on_meta_device(), suppress(Exception):  # a custom layer may raise anything
            _materialize(built.bare, taken)
        weights = Weights.of(built.bare)
        send(weights)
        return self._tried(layer, built, weights, taken, first=first)

    def _tried(
        self,
        layer: Layer,
        built: "_Built",
        weights: Weights,
        taken: ActivationSpec,
        *,
        first: bool,
    ) -> Costed:
        reason, dynamic = "", False
        for compute, mode in ((self._compute, nullcontext()), (torch.float32, Together())):  # [1], [2]
            trial = Trial(skeleton(built.bare, compute), _leaves(taken, compute), taken.nest)
            try:
                with torch.enable_grad(), on_meta_device(), mode:
                    outputs = trial.run()
                return Costed(trial.cost(layer.name, weights), outputs)
            except Exception as error:  # a custom layer may raise anything
                reason = f"does not run on the meta device ({_reason(error)})"
                dynamic |= trial.dynamic or any(words in str(error) for words in _READS_VALUES)
        if _is_small(weights, taken):  # [3]
            values = flatten(self._inputs)[0] if first else _examples(taken)
            inputs = [v.detach().clone().requires_grad_(v.requires_grad) for v in values]
            try:
                module = layer.build() if built.module is built.bare else built.module
                trial = Trial(module, inputs, taken.nest)
                with torch.enable_grad():
                    outputs = trial.run()
                cost = trial.cost(layer.name, weights)
                dynamic |= trial.dynamic
                return Costed(
                    replace(cost, dynamic=dynamic, warning=f"cost counted on one example: {reason}"), outputs
                )
            except Exception:
                pass
        return guess(layer.name, weights, taken, reason)  # [4]

    def _try_loss(self, send: Send, taken: ActivationSpec) -> None:
        loss, precision = self._model.loss, Precision(self._compute)
        leaves = _leaves(taken, torch.float32)
        tensors, nest = flatten(self._targets)
        targets = unflatten([torch.empty_like(tensor, device="meta") for tensor in tensors], nest)
        work = Work()
        try:
            with torch.enable_grad(), on_meta_device():
                given = [precision.for_loss(leaf).clone() for leaf in leaves]
                work.watch(given)
                with work:
                    loss(unflatten(given, taken.nest), targets)
            saved = saved_by_loss(loss, precision, leaves, taken.nest, targets, copied=work.writes)
        except Exception:  # a custom loss may raise anything
            saved = 0
        send(LossCost(saved, work.writes))


class _Owners:
    """Which layer has which trained parameter: an undeclared tie would train differently in every layout."""

    def __init__(self) -> None:
        self._owners: dict[int, tuple[weakref.ref[Tensor], str, str]] = {}

    def claim(self, layer: Layer, module: nn.Module) -> None:
        """Record a layer's parameters; raise a UserError if another layer has one of them, too."""
        tied = {tie.parameter for tie in layer.ties}
        for name, parameter in plain_parameters(module).items():
            reference, owner, own_name = self._owners.get(id(parameter), (None, "", ""))
            if reference is None or reference() is not parameter:
                self._owners[id(parameter)] = weakref.ref(parameter), layer.name, name
            elif parameter.requires_grad and name not in tied and owner != layer.name:
                raise UserError(
                    f"layers {owner!r} and {layer.name!r} share a parameter ({own_name!r} and {name!r}): "
                    "their `build` returns the same module, or uses the same tensor. Let each build its own, "
                    f"or give {layer.name!r} ties=(Tie({name!r}, {owner!r}, {own_name!r}),)"
                )

    def check_again(self, layer: Layer, other: Layer) -> None:
        """Check that the `build` that a layer shares with another one returns a new module for each."""
        owned = [reference() for reference, owner, _ in list(self._owners.values()) if owner == layer.name]
        if any(parameter is not None and parameter.requires_grad for parameter in owned):
            self.claim(other, build_skeleton(other)[0])


def guess(name: str, weights: Weights, taken: ActivationSpec, reason: str) -> Costed:
    """Return a cost as of a product with the parameters that keeps the shape."""
    moved = 2 * taken.bytes
    vectors = max((_numel(spec) // max([1, *spec.shape[-1:]]) for spec in taken.tensors), default=1)
    flops = 2 * vectors * weights.parameters
    has_backward = weights.trained > 0 or bool(taken.differentiable)
    accumulation = 3 * sum(weights.trained_bytes.values())
    cost = LayerCost(
        name=name,
        flops_forward=flops,
        flops_backward=2 * flops if has_backward else 0,
        moved_forward=moved,
        moved_backward=moved + accumulation if has_backward else 0,
        output_bytes=taken.bytes,
        saved_bytes=dict.fromkeys(Recompute, taken.bytes),
        deferred=0,
        deferred_bytes=taken.bytes,
        deferred_work=0.0,
        warning=f"cost guessed from the parameters: {reason}",
        writes_inputs=True,
        dynamic=True,
        **vars(weights),
    )
    return Costed(cost, taken)


def _materialize(module: nn.Module, taken: ActivationSpec) -> None:
    """Let a forward give lazy parameters their shapes."""
    if any(is_lazy(parameter) for parameter in module.parameters()):
        module(unflatten(_leaves(taken, torch.float32), taken.nest))


def _leaves(taken: ActivationSpec, compute: torch.dtype) -> list[Tensor]:
    """Return leaves of a new graph on the meta device, as the engine cuts graphs."""
    types = [compute if spec.dtype is torch.float32 else spec.dtype for spec in taken.tensors]
    return [
        torch.empty(spec.shape, dtype=dtype, device="meta").requires_grad_(spec.requires_grad)
        for spec, dtype in zip(taken.tensors, types, strict=True)
    ]


def _examples(taken: ActivationSpec) -> Iterator[Tensor]:
    """Yield values that fit most layers: random numbers, and ones as positions, lengths and masks."""
    for spec in taken.tensors:
        continuous = spec.dtype.is_floating_point or spec.dtype.is_complex
        make = torch.randn if continuous else torch.ones
        yield make(spec.shape, dtype=spec.dtype).requires_grad_(spec.requires_grad)


def _is_small(weights: Weights, taken: ActivationSpec) -> bool:
    vectors = max((_numel(spec) for spec in taken.tensors), default=1)
    small = weights.parameter_bytes + taken.bytes <= _MOST_BYTES
    return small and vectors * max(1, weights.parameters) <= _MOST_OPERATIONS


def _numel(spec: TensorSpec) -> int:
    return spec.bytes // spec.dtype.itemsize


def _reason(error: Exception) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:120]}"
