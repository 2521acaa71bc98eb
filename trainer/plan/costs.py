"""What every layer costs, without building the model: each layer in turn runs on torch's meta device.

Meta tensors have shapes but no numbers, so a model larger than the host is costed in a moment. Products of
matrices, convolutions and attention are counted by torch's flop counter (a multiplication and an addition
are two; causal attention counts as if every position saw all others). Everything else, norms, activation
functions, dropout, lookups, costs what the bytes that it reads and writes cost, see `FLOPS_PER_BYTE`.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils.flop_counter import FlopCounterMode, flop_registry

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

# So many operations take as long as moving a byte: about 100 GFLOP/s against 10 to 20 GB/s on a processor's
# core, 60 TFLOP/s in fp32 against 3.4 TB/s on an H100. Only the order of magnitude matters: these costs
# decide between cuts where counted operations do not.
FLOPS_PER_BYTE = 8

aten = torch.ops.aten
ALLOCATIONS = frozenset({aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty})
LOOKUPS = frozenset({aten.embedding, aten.index, aten.index_select, aten.gather})  # read what they return


@dataclass(frozen=True)
class LayerCost:
    """What one layer costs for one micro-batch.

    Attributes:
        name: The layer's name.
        flops_forward: Operations counted in a forward pass.
        flops_backward: Operations counted in a backward pass: gradients of the parameters, unless they are
            frozen, and, where something before them learns, of the inputs.
        moved_forward: Bytes that a forward pass reads and writes where no operations are counted.
        moved_backward: The same of a backward pass, with adding to the gradient of every parameter that
            is not frozen; nothing where neither the layer nor anything before it learns.
        parameters: How many numbers its parameters are, tied ones included.
        parameter_bytes: The bytes of these.
        output_bytes: The bytes of the activation that it returns: the message, if the model is cut here.
        saved_bytes: What a forward pass keeps until the backward, its output included, parameters and inputs
            left out, by what the backward computes again; the last layer's with what the loss keeps.
            Attention with dropout counts as unfused, as on a processor; a GPU keeps less.
        trained: How many numbers of the parameters are not frozen.
        trained_bytes: The bytes of each parameter that is not frozen, by its name in the module, in order.
        deferred: Of how many of these a split backward makes the gradients in its second part.
        deferred_bytes: What the first part of it leaves for the second, inputs included.
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
        """Return the relative time of a forward pass, in operations."""
        return self.flops_forward + FLOPS_PER_BYTE * self.moved_forward

    @property
    def backward(self) -> float:
        """Return the relative time of a backward pass, in operations."""
        return self.flops_backward + FLOPS_PER_BYTE * self.moved_backward

    def recompute_time(self, recompute: Recompute) -> float:
        """Return the relative time of what a backward computes again, in operations."""
        if recompute is Recompute.FULL:
            return self.forward
        return FLOPS_PER_BYTE * self.moved_forward if recompute is Recompute.SELECTIVE else 0.0

    @property
    def cost(self) -> float:
        """Return the relative time of both passes: what a partition balances."""
        return self.forward + self.backward


def layer_costs(
    model: Model,
    inputs: Activation,
    compute: torch.dtype = torch.float32,
    targets: Activation = None,
) -> list[LayerCost]:
    """Return what each layer costs.

    A layer that cannot run on the meta device (its shapes hang on its numbers, say) is taken for a product
    with its parameters that leaves the shape as it is; its cost carries a warning.

    Layers that share one `build` and take the same types and shapes, as a transformer's blocks do, are run
    once.

    Args:
        model: The model; its loss takes no time here.
        inputs: What the first layer takes, of a whole micro-batch; only types and shapes are looked at.
        compute: The type that layers compute in: they are costed as if all of their float32 were of it, but
            for the gradients that are added up. Autocast, which leaves some as it is, knows no meta device.
        targets: The micro-batch's, of which only types and shapes are looked at; None: what the loss keeps is
            not counted, nor is it where the loss does not run on the meta device.
    """
    known: dict[tuple[int, ActivationSpec], tuple[LayerCost, list[Tensor], TreeSpec]] = {}
    costs = []
    tensors, nest = flatten(inputs)
    for layer in model.layers:
        key = id(layer.build), spec_of(tensors, nest)
        if key not in known:
            known[key] = _layer_cost(layer, tensors, nest, compute)
        cost, tensors, nest = known[key]
        costs.append(replace(cost, name=layer.name))
    if targets is not None:
        with suppress(Exception):  # a loss of the user's own may raise anything
            more = saved_by_loss(model.loss, Precision(compute), tensors, nest, targets)
            kept = {recompute: size + more for recompute, size in costs[-1].saved_bytes.items()}
            costs[-1] = replace(costs[-1], saved_bytes=kept)
    return costs


def _layer_cost(
    layer: Layer, given: list[Tensor], nest: TreeSpec, compute: torch.dtype
) -> tuple[LayerCost, list[Tensor], TreeSpec]:
    """Return the cost of a layer, and the activation that it returns, flattened."""
    module = build_on_meta(layer).train()
    parameters = list(module.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    parameter_bytes = _bytes(parameters)
    trained_bytes = {name: _bytes([p]) for name, p in module.named_parameters() if p.requires_grad}
    inputs = [_on_meta(tensor, compute) for tensor in given]
    if compute is not torch.float32:
        module.to(compute)
    learns = bool(trained) or any(tensor.requires_grad for tensor in inputs)  # else it has no backward
    forward, backward, first = _Work(), _Work(), _Work()
    warning = None
    try:
        with torch.enable_grad(), torch.device("meta"):
            with forward.counting():
                outputs, shape = _run(module, inputs, nest)
            learning = [tensor for tensor in outputs if tensor.requires_grad]
            gradients = [torch.empty_like(tensor) for tensor in learning]
            with backward.counting():
                torch.autograd.backward(learning, gradients)
            kept = {mode: saved_bytes(partial(_outputs, module, nest), inputs, mode) for mode in Recompute}
            left, first, later = _first_part(module, inputs, nest)
    except Exception as error:  # a layer of the user's own may raise anything
        if compute is not torch.float32:  # it may count on some of its float32
            return _layer_cost(layer, given, nest, torch.float32)
        warning = (
            f"it does not run on the meta device, so its cost is a guess from its parameters "
            f"({type(error).__name__}: {error})"
        )
        outputs, shape, left, later = inputs, nest, _bytes(inputs), []
        kept = dict.fromkeys(Recompute, _bytes(outputs))
        forward.flops = _product(parameters, inputs)
        backward.flops = 2 * forward.flops if learns else 0
    crossing = _bytes(inputs) + _bytes(outputs)  # the least that a layer moves: it could do nothing at all
    cost = LayerCost(
        name=layer.name,
        flops_forward=forward.flops,
        flops_backward=backward.flops,
        moved_forward=max(forward.moved, crossing),
        # To add to a gradient is to read it, to read what is added, and to write it.
        moved_backward=max(backward.moved, crossing) + 3 * sum(trained_bytes.values()) if learns else 0,
        parameters=sum(parameter.numel() for parameter in parameters),
        parameter_bytes=parameter_bytes,
        output_bytes=_bytes(outputs),
        saved_bytes=kept,
        trained=sum(parameter.numel() for parameter in trained),
        deferred=sum(parameter.numel() for parameter in later),
        deferred_bytes=left,
        # The second part also adds what it makes to the gradients.
        deferred_work=backward.cost - first.cost + FLOPS_PER_BYTE * 3 * _bytes(later) if later else 0.0,
        trained_bytes=trained_bytes,
        warning=warning,
    )
    return cost, outputs, shape


class _Work(KernelMode):
    """Counts the operations of some kernels, and the bytes that all others read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.moved = 0

    @property
    def cost(self) -> float:
        """Return the relative time, in operations."""
        return self.flops + FLOPS_PER_BYTE * self.moved

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what is done in the context."""
        with FlopCounterMode(display=False) as counter, self:
            yield
        self.flops = counter.get_total_flops()

    def run(self, kernel: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a kernel, and count its bytes unless its operations are counted."""
        result = kernel(*args, **kwargs)
        packet = kernel.overloadpacket
        if packet not in flop_registry and not kernel.is_view and packet not in ALLOCATIONS:
            written = _bytes(tensors_in(result))
            self.moved += written + (written if packet in LOOKUPS else _bytes(tensors_in((args, kwargs))))
        return result


def _run(module: nn.Module, leaves: Sequence[Tensor], nest: TreeSpec) -> tuple[list[Tensor], TreeSpec]:
    """Run a layer as a stage does."""
    copied = works_in_place(module)
    return flatten(module(unflatten([leaf.clone() if copied else leaf for leaf in leaves], nest)))


def _outputs(module: nn.Module, nest: TreeSpec, *leaves: Tensor) -> list[Tensor]:
    """Return what a stage keeps of what a layer returns."""
    return [tensor.contiguous() for tensor in _run(module, leaves, nest)[0]]


def _first_part(
    module: nn.Module, inputs: list[Tensor], nest: TreeSpec
) -> tuple[int, "_Work", list[nn.Parameter]]:
    """Return what the first part of a split backward keeps, its work, and whose gradients it puts off."""
    deferral, work, live = Deferral([module]), _Work(), LiveBytes()
    deferred: Deferred = []
    with live:
        leaves = [_on_meta(tensor, tensor.dtype) for tensor in inputs]
        outputs = [tensor for tensor in _run(module, leaves, nest)[0] if tensor.requires_grad]
        gradients = [torch.empty_like(tensor) for tensor in outputs]
        if outputs:
            with work.counting():
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
    """Return a tensor's type and shape as the start of a graph of its own, as the engine cuts it."""
    dtype = compute if tensor.dtype is torch.float32 else tensor.dtype
    meta = torch.empty(tensor.shape, dtype=dtype, device="meta")
    return meta.requires_grad_(tensor.requires_grad)


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
