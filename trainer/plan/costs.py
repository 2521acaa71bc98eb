"""The cost of every layer, without building the model: each layer runs on torch's meta device.

Meta tensors have shapes but no data, so even a model larger than the host takes only moments. Operations of
matrix products, convolutions and attention are counted by torch's formulas (a multiplication and an addition
are two; causal attention counts as if every position attended to all others). Everything else (norms,
activation functions, dropout, lookups) costs the bytes that it reads and writes: see `FLOPS_PER_BYTE`.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils.flop_counter import flop_registry

from trainer.activation import Activation, ActivationSpec, TreeSpec, flatten, spec_of, unflatten
from trainer.models.model import Layer, Model
from trainer.models.names import build_on_meta
from trainer.pipeline.kernel_mode import KernelMode
from trainer.pipeline.layer import works_in_place
from trainer.pipeline.precision import Precision
from trainer.pipeline.recomputation import Recompute
from trainer.pipeline.tensor_bytes import LiveBytes, tensors_in
from trainer.pipeline.weight_gradients import Deferral, Deferred
from trainer.plan.saved_activations import saved_by_loss, saved_bytes

# Operations per byte at which computing and moving data take equally long: about 100 GFLOP/s against 10 to
# 20 GB/s on a CPU core, 60 TFLOP/s in fp32 against 3.4 TB/s on an H100. Only the order of magnitude matters:
# these costs choose between cuts where counted operations do not.
FLOPS_PER_BYTE = 8

aten = torch.ops.aten
ALLOCATIONS = frozenset({aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty})
LOOKUPS = frozenset({aten.embedding, aten.index, aten.index_select, aten.gather})  # read their result's bytes


@dataclass(frozen=True)
class LayerCost:
    """The cost of one layer for one micro-batch.

    Attributes:
        name: The layer's name.
        flops_forward: Operations counted in a forward.
        flops_backward: Operations counted in a backward: gradients of the parameters that are not frozen and,
            where an earlier layer trains, of the inputs.
        moved_forward: Bytes that a forward reads and writes in kernels whose operations are not counted.
        moved_backward: The same for a backward, including adding to the gradients of trained parameters; 0 if
            neither the layer nor an earlier one trains.
        parameters: The number of elements of its parameters, tied ones included.
        parameter_bytes: The bytes of these.
        output_bytes: The bytes of the activation that it returns: the message, if the model is cut here.
        saved_bytes: Bytes saved from a forward for its backward, by recomputation mode: including the output,
            without parameters and inputs. The last layer's include the loss's saved tensors. Attention with
            dropout counts as unfused, as on a CPU; a GPU saves less.
        trained: The number of elements of its parameters that are not frozen.
        trained_bytes: The bytes of each parameter that is not frozen, by its name in the module, in order.
        deferred: How many of the trained elements get their gradients in the second part of a split backward.
        deferred_bytes: Bytes that the first part leaves for the second, inputs included.
        deferred_work: The relative time of the second part, in operations.
        warning: Why the figures are a guess; None if they are not.
    """

    name: str
    flops_forward: int
    flops_backward: int
    moved_forward: int
    moved_backward: int
    parameters: int
    parameter_bytes: int
    output_bytes: int
    saved_bytes: Mapping[Recompute, int]
    trained: int
    deferred: int
    deferred_bytes: int
    deferred_work: float
    trained_bytes: Mapping[str, int] = field(default_factory=dict)
    warning: str | None = None

    @property
    def forward(self) -> float:
        """Return the relative time of a forward, in operations."""
        return self.flops_forward + FLOPS_PER_BYTE * self.moved_forward

    @property
    def backward(self) -> float:
        """Return the relative time of a backward without recomputation, in operations."""
        return self.flops_backward + FLOPS_PER_BYTE * self.moved_backward

    def recompute_time(self, recompute: Recompute) -> float:
        """Return the relative time that recomputation adds to a backward, in operations."""
        if recompute is Recompute.FULL:
            return self.forward
        return FLOPS_PER_BYTE * self.moved_forward if recompute is Recompute.SELECTIVE else 0.0

    @property
    def cost(self) -> float:
        """Return the relative time of both passes, which a partition balances."""
        return self.forward + self.backward


def layer_costs(
    model: Model, inputs: Activation, compute: torch.dtype = torch.float32, targets: Activation = None
) -> list[LayerCost]:
    """Return the cost of each layer.

    A layer that cannot run on the meta device (for instance, because its shapes depend on its data) counts as
    a product with its parameters that keeps the shape; its cost carries a warning. Layers that share one
    `build` and take the same types and shapes, such as a transformer's blocks, run once.

    Args:
        model: The model; the time of its loss is not counted.
        inputs: The first layer's inputs, of a full micro-batch; only their types and shapes matter.
        compute: The type that layers compute in. All of their float32 counts as this type, except for the
            accumulated gradients. Autocast would keep some of it, but does not support the meta device.
        targets: The targets of a micro-batch; only their types and shapes matter. The loss's saved tensors
            are not counted without targets, or if the loss does not run on the meta device.
    """
    trials: dict[tuple[int, ActivationSpec], _Trial] = {}
    costs = []
    tensors, nest = flatten(inputs)
    for layer in model.layers:
        key = id(layer.build), spec_of(tensors, nest)
        if key not in trials:
            trials[key] = _try(layer, tensors, nest, compute)
        costs.append(trials[key].cost(layer.name))
        tensors, nest = trials[key].outputs, trials[key].output_nest
    if targets is not None:
        with suppress(Exception):  # a custom loss may raise anything
            more = saved_by_loss(model.loss, Precision(compute), tensors, nest, targets)
            saved = {recompute: size + more for recompute, size in costs[-1].saved_bytes.items()}
            costs[-1] = replace(costs[-1], saved_bytes=saved)
    return costs


def _try(layer: Layer, given: Sequence[Tensor], nest: TreeSpec, compute: torch.dtype) -> "_Trial":
    """Run a layer in the type `compute`, or in float32 where that fails."""
    trial = _Trial(layer, given, nest, compute)
    if trial.warning is not None and compute is not torch.float32:  # it may need some of its float32
        return _Trial(layer, given, nest, torch.float32)
    return trial


class _Trial:
    """A layer's forward and backward on the meta device, or a guess where it does not run there."""

    def __init__(self, layer: Layer, given: Sequence[Tensor], nest: TreeSpec, compute: torch.dtype) -> None:
        self._module = build_on_meta(layer).train()
        self._parameters = list(self._module.parameters())
        self._parameter_bytes = _bytes(self._parameters)  # in the type that they train in, not in `compute`
        trained = {name: p for name, p in self._module.named_parameters() if p.requires_grad}
        self._trained = list(trained.values())
        self._trained_bytes = {name: _bytes([parameter]) for name, parameter in trained.items()}
        if compute is not torch.float32:
            self._module.to(compute)
        self._inputs = [_on_meta(tensor, compute) for tensor in given]
        self._has_backward = any(tensor.requires_grad for tensor in (*self._trained, *self._inputs))
        self._forward, self._backward = _Work(), _Work()
        self.warning: str | None = None
        try:
            with torch.enable_grad(), torch.device("meta"):
                self._run(nest)
        except Exception as error:  # a custom layer may raise anything
            self._guess(nest, error)

    def _run(self, nest: TreeSpec) -> None:
        module, inputs = self._module, self._inputs
        with self._forward:
            self.outputs, self.output_nest = _run(module, inputs, nest)
        outputs = [tensor for tensor in self.outputs if tensor.requires_grad]
        gradients = [torch.empty_like(tensor) for tensor in outputs]
        with self._backward:
            torch.autograd.backward(outputs, gradients)
        self._saved = {mode: saved_bytes(partial(_outputs, module, nest), inputs, mode) for mode in Recompute}
        self._deferred_bytes, first, self._deferred = _first_part(module, inputs, nest)
        accumulation = FLOPS_PER_BYTE * 3 * _bytes(self._deferred)  # the second part does that, too
        self._deferred_work = self._backward.cost - first.cost + accumulation if self._deferred else 0.0

    def _guess(self, nest: TreeSpec, error: Exception) -> None:
        self.warning = (
            "it does not run on the meta device, so its cost is a guess from its parameters "
            f"({type(error).__name__}: {error})"
        )
        self.outputs, self.output_nest = self._inputs, nest
        self._saved = dict.fromkeys(Recompute, _bytes(self.outputs))
        self._forward.flops = _product(self._parameters, self._inputs)
        self._backward.flops = 2 * self._forward.flops if self._has_backward else 0
        self._deferred_bytes, self._deferred, self._deferred_work = _bytes(self._inputs), [], 0.0

    def cost(self, name: str) -> LayerCost:
        """Return the layer's cost."""
        least = _bytes(self._inputs) + _bytes(self.outputs)  # even a layer that does nothing moves these
        accumulation = 3 * sum(self._trained_bytes.values())  # reads both terms, and writes the sum
        return LayerCost(
            name=name,
            flops_forward=self._forward.flops,
            flops_backward=self._backward.flops,
            moved_forward=max(self._forward.moved, least),
            moved_backward=max(self._backward.moved, least) + accumulation if self._has_backward else 0,
            parameters=sum(parameter.numel() for parameter in self._parameters),
            parameter_bytes=self._parameter_bytes,
            output_bytes=_bytes(self.outputs),
            saved_bytes=self._saved,
            trained=sum(parameter.numel() for parameter in self._trained),
            deferred=sum(parameter.numel() for parameter in self._deferred),
            deferred_bytes=self._deferred_bytes,
            deferred_work=self._deferred_work,
            trained_bytes=self._trained_bytes,
            warning=self.warning,
        )


class _Work(KernelMode):
    """Counts the operations of some kernels, and the bytes that all others read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.moved = 0

    @property
    def cost(self) -> float:
        """Return the relative time, in operations."""
        return self.flops + FLOPS_PER_BYTE * self.moved

    def run(self, kernel: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a kernel, and count its operations, or its bytes."""
        result = kernel(*args, **kwargs)
        packet = kernel.overloadpacket
        if packet in flop_registry:
            self.flops += flop_registry[packet](*args, **kwargs, out_val=result)
        elif not kernel.is_view and packet not in ALLOCATIONS:
            written = _bytes(tensors_in(result))
            self.moved += written + (written if packet in LOOKUPS else _bytes(tensors_in((args, kwargs))))
        return result


def _run(module: nn.Module, leaves: Sequence[Tensor], nest: TreeSpec) -> tuple[list[Tensor], TreeSpec]:
    """Run a layer as a stage does."""
    copied = works_in_place(module)
    return flatten(module(unflatten([leaf.clone() if copied else leaf for leaf in leaves], nest)))


def _outputs(module: nn.Module, nest: TreeSpec, *leaves: Tensor) -> list[Tensor]:
    """Return a layer's outputs as a stage keeps them."""
    return [tensor.contiguous() for tensor in _run(module, leaves, nest)[0]]


def _first_part(
    module: nn.Module, inputs: Sequence[Tensor], nest: TreeSpec
) -> tuple[int, "_Work", list[nn.Parameter]]:
    """Run the first part of a split backward.

    Returns:
        The bytes that it leaves for the second part, its work, and the parameters whose gradients it defers.
    """
    deferral, work, live = Deferral([module]), _Work(), LiveBytes()
    deferred: Deferred = []
    with live:
        leaves = [_on_meta(tensor, tensor.dtype) for tensor in inputs]
        outputs = [tensor for tensor in _run(module, leaves, nest)[0] if tensor.requires_grad]
        gradients = [torch.empty_like(tensor) for tensor in outputs]
        if outputs:
            with work:
                deferral.backward("", outputs, gradients, deferred)
        del leaves, outputs, gradients
        for parameter in module.parameters():
            parameter.grad = None
    return live.bytes, work, list(dict.fromkeys(parameter for parameter, _ in deferred))


def _product(parameters: Sequence[Tensor], inputs: Sequence[Tensor]) -> int:
    """Return the operations of a product of every vector of the largest input with all parameters."""
    vectors = max((tensor.numel() // max([1, *tensor.shape[-1:]]) for tensor in inputs), default=1)
    return 2 * vectors * sum(parameter.numel() for parameter in parameters)


def _on_meta(tensor: Tensor, compute: torch.dtype) -> Tensor:
    """Return a tensor's type and shape as a leaf of a new graph, as the engine cuts graphs."""
    dtype = compute if tensor.dtype is torch.float32 else tensor.dtype
    meta = torch.empty(tensor.shape, dtype=dtype, device="meta")
    return meta.requires_grad_(tensor.requires_grad)


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
