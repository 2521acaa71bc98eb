"""A trial of one layer: its forward and backward, counted kernel by kernel."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry

from trainer.activation import ActivationSpec, TreeSpec, flatten, spec_of, unflatten
from trainer.models.deferring import Deferred
from trainer.models.names import plain_parameters
from trainer.pipeline.kernel_mode import KernelMode
from trainer.pipeline.recomputation import Recompute
from trainer.pipeline.tensor_bytes import LiveBytes, memory_of, tensors_in, written_by
from trainer.pipeline.weight_gradients import Deferral
from trainer.plan.layer_cost import FLOPS_PER_BYTE, LayerCost
from trainer.plan.saved_activations import saved_bytes

aten = torch.ops.aten
ALLOCATIONS = frozenset({aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty})
LOOKUPS = frozenset({aten.embedding, aten.index, aten.index_select, aten.gather})  # read their result's bytes


@dataclass(frozen=True)
class Weights:
    """What a layer's parameters say without running it, in the types that they train in."""

    parameters: int = 0
    parameter_bytes: int = 0
    trained: int = 0
    trained_bytes: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, module: nn.Module) -> "Weights":
        """Return those of a module."""
        named = {name: p for name, p in plain_parameters(module).items() if not is_lazy(p)}
        trained = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
        return cls(
            sum(parameter.numel() for parameter in named.values()),
            total_bytes(list(named.values())),
            sum(parameter.numel() for parameter in trained.values()),
            {name: total_bytes([parameter]) for name, parameter in trained.items()},
        )


class Trial:
    """A layer's forward and backward.

    Args:
        module: The layer, on the device to run on.
        inputs: Leaves on that device.
        nest: Their structure.

    Attributes:
        dynamic: Whether the outputs' shapes may depend on values; known even if `run` raises.
    """

    def __init__(self, module: nn.Module, inputs: Sequence[Tensor], nest: TreeSpec) -> None:
        self._module = module.train()
        module.zero_grad()
        self._inputs = inputs
        self._nest = nest
        self._forward, self._backward = Work(), Work()

    @property
    def dynamic(self) -> bool:
        """Return whether the outputs' shapes may depend on values; known even if `run` raises."""
        return self._forward.dynamic

    def run(self) -> ActivationSpec:
        """Count both passes; return the outputs' types and shapes. Raises whatever the layer raises."""
        module, inputs, nest = self._module, self._inputs, self._nest
        given = [leaf.clone() for leaf in inputs]  # no leaves, as within a network: it may write into them
        self._forward.watch(given)
        with self._forward:
            tensors, output_nest = flatten(module(unflatten(given, nest)))
        self._copied = self._forward.writes
        outputs = [tensor for tensor in tensors if tensor.requires_grad]
        gradients = [torch.empty_like(tensor) for tensor in outputs]
        with self._backward:
            torch.autograd.backward(outputs, gradients)
        forward = partial(_outputs, module, nest, self._copied)
        self._saved = {mode: saved_bytes(forward, inputs, mode) for mode in Recompute}
        self._split()
        self._outputs = spec_of(tensors, output_nest)
        return self._outputs

    def _split(self) -> None:
        """Run the first part of a split backward; note what it leaves for the second part."""
        module, deferral, first, live = self._module, Deferral([self._module]), Work(), LiveBytes()
        deferred: Deferred = []
        with live:
            leaves = [leaf.detach().clone().requires_grad_(leaf.requires_grad) for leaf in self._inputs]
            outputs = [t for t in _run(module, self._nest, self._copied, leaves) if t.requires_grad]
            gradients = [torch.empty_like(tensor) for tensor in outputs]
            if outputs:
                with first:
                    deferral.backward(outputs, gradients, deferred)
            del leaves, outputs, gradients
            for parameter in module.parameters():
                parameter.grad = None
        self._deferred_bytes = live.bytes
        parameters = list(dict.fromkeys(parameter for parameter, _ in deferred))
        self._deferred = sum(parameter.numel() for parameter in parameters)
        accumulation = FLOPS_PER_BYTE * 3 * total_bytes(parameters)  # the second part does that, too
        self._deferred_work = self._backward.cost - first.cost + accumulation if parameters else 0.0

    def cost(self, name: str, weights: Weights) -> LayerCost:
        """Return the layer's cost."""
        taken, given = total_bytes(self._inputs), self._outputs.bytes
        copies = 2 * taken if self._copied else 0
        least = taken + given  # even a layer that does nothing moves these
        accumulation = 3 * sum(weights.trained_bytes.values())  # reads both terms, and writes the sum
        has_backward = weights.trained > 0 or any(tensor.requires_grad for tensor in self._inputs)
        return LayerCost(
            name=name,
            flops_forward=self._forward.flops,
            flops_backward=self._backward.flops,
            moved_forward=max(self._forward.moved + copies, least),
            moved_backward=max(self._backward.moved, least) + accumulation if has_backward else 0,
            output_bytes=given,
            saved_bytes=self._saved,
            deferred=self._deferred,
            deferred_bytes=self._deferred_bytes,
            deferred_work=self._deferred_work,
            writes_inputs=self._copied,
            dynamic=self.dynamic,
            outputs=self._outputs,
            **vars(weights),
        )


class Work(KernelMode):
    """Counts the operations of some kernels, and the bytes that all others read and write.

    Attributes:
        flops: Operations.
        moved: Bytes.
        writes: Whether a kernel has written into a watched tensor.
        dynamic: Whether a result's shape depended on values, or a value was read.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.moved = 0
        self.writes = self.dynamic = False
        self._watched: set[int] = set()

    def watch(self, tensors: Sequence[Tensor]) -> None:
        """Note from now on whether kernels write into these."""
        self._watched = {memory_of(tensor) for tensor in tensors}

    @property
    def cost(self) -> float:
        """Return the relative time, in operations."""
        return self.flops + FLOPS_PER_BYTE * self.moved

    def run(self, kernel: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a kernel, and count its operations, or its bytes."""
        self.dynamic |= _depends_on_values(kernel, args)
        self.writes |= any(memory_of(tensor) in self._watched for tensor in written_by(kernel, args, kwargs))
        result = kernel(*args, **kwargs)
        packet = kernel.overloadpacket
        if packet in flop_registry:
            self.flops += flop_registry[packet](*args, **kwargs, out_val=result)
        elif not kernel.is_view and packet not in ALLOCATIONS:
            written = total_bytes(tensors_in(result))
            self.moved += written + (
                written if packet in LOOKUPS else total_bytes(tensors_in((args, kwargs)))
            )
        return result


class Together(KernelMode):
    """Moves tensors, such as constant tables, to the meta device where a kernel gets others there."""

    def run(self, kernel: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a kernel on the meta device if any tensor is there."""
        if any(tensor.is_meta for tensor in tensors_in((args, kwargs))):
            args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
        return kernel(*args, **kwargs)


def total_bytes(tensors: Sequence[Tensor]) -> int:
    """Return the size of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _run(module: nn.Module, nest: TreeSpec, copied: bool, leaves: Sequence[Tensor]) -> list[Tensor]:
    """Run a layer as a stage does."""
    return flatten(module(unflatten([leaf.clone() if copied else leaf for leaf in leaves], nest)))[0]


def _outputs(module: nn.Module, nest: TreeSpec, copied: bool, *leaves: Tensor) -> list[Tensor]:
    """Return a layer's outputs as a stage keeps them."""
    return [tensor.contiguous() for tensor in _run(module, nest, copied, leaves)]


def _depends_on_values(kernel: OpOverload, args: tuple[Any, ...]) -> bool:
    if kernel.overloadpacket is aten.index:  # by places, the shape is known; by a mask, it is not
        return any(tensor.dtype in (torch.bool, torch.uint8) for tensor in tensors_in(args[1]))
    if kernel.overloadpacket is aten._pack_padded_sequence:
        return True
    return torch.Tag.dynamic_output_shape in kernel.tags or torch.Tag.data_dependent_output in kernel.tags
