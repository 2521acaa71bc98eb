"""What every layer costs, without building the model: each layer in turn runs on torch's meta device.

Meta tensors have shapes but no numbers, so a model larger than the host is costed in a moment. Products of
matrices, convolutions and attention are counted by torch's flop counter (a multiplication and an addition
are two; causal attention counts as if every position saw all others). Everything else, norms, activation
functions, dropout, lookups, costs what the bytes that it reads and writes cost, see `FLOPS_PER_BYTE`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from trainer.models.model import Activation, Layer, Model
from trainer.models.names import build_on_meta
from trainer.pipeline.activation import Nest, Structure, flatten, structure, unflatten
from trainer.pipeline.weight_gradients import Deferred, add_weight_gradients, collecting, weights_put_off
from trainer.pipeline.weight_nodes import as_it_is

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
        saved_bytes: What the forward pass keeps for the backward, parameters left out; tensors that share
            memory count once. The layer before may keep some of them too, and attention that is
            fused keeps less: the meta device runs it unfused.
        trained: How many numbers of the parameters are not frozen.
        put_off: Of how many of these a split backward makes the gradients in its second part.
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
    saved_bytes: int
    trained: int
    put_off: int
    warning: str | None = None

    @property
    def forward(self) -> float:
        """Return the relative time of a forward pass, in operations."""
        return self.flops_forward + FLOPS_PER_BYTE * self.moved_forward

    @property
    def backward(self) -> float:
        """Return the relative time of a backward pass, in operations."""
        return self.flops_backward + FLOPS_PER_BYTE * self.moved_backward

    @property
    def cost(self) -> float:
        """Return the relative time of both passes: what a partition balances."""
        return self.forward + self.backward


def layer_costs(model: Model, inputs: Activation) -> list[LayerCost]:
    """Return what each layer costs.

    A layer that cannot run on the meta device (its shapes hang on its numbers, say) is taken for a product
    with its parameters that leaves the shape as it is; its cost carries a warning.

    Layers that share one `build` and take the same types and shapes, as a transformer's blocks do, are run
    once.

    Args:
        model: The model; its loss is not costed.
        inputs: What the first layer takes, of a whole micro-batch; only types and shapes are looked at.
    """
    known: dict[tuple[int, Structure], tuple[LayerCost, list[Tensor], Nest]] = {}
    costs = []
    tensors, nest = flatten(inputs)
    for layer in model.layers:
        key = id(layer.build), structure(tensors, nest)
        if key not in known:
            known[key] = _layer_cost(layer, [_on_meta(tensor) for tensor in tensors], nest)
        cost, tensors, nest = known[key]
        costs.append(replace(cost, name=layer.name))
    return costs


def _layer_cost(layer: Layer, inputs: list[Tensor], nest: Nest) -> tuple[LayerCost, list[Tensor], Nest]:
    """Return the cost of a layer, and the activation that it returns, flattened."""
    module = build_on_meta(layer).train()
    parameters = list(module.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    learns = bool(trained) or any(tensor.requires_grad for tensor in inputs)  # else it has no backward
    kept, forward, backward = _Kept(module), _Work(), _Work()
    own: Deferred = []  # what autograd functions of the user's own put off
    later: set[nn.Parameter] = set()
    warning = None
    try:
        with torch.enable_grad(), torch.device("meta"):
            with saved_tensors_hooks(kept.save, as_it_is), forward.counting():
                outputs, nest = flatten(module(unflatten(inputs, nest)))
            learning = [tensor for tensor in outputs if tensor.requires_grad]
            gradients = [torch.empty_like(tensor) for tensor in learning]
            later = weights_put_off(learning)
            with backward.counting(), collecting(own):
                torch.autograd.backward(learning, gradients)
                later.update(parameter for parameter, _ in own)
                add_weight_gradients(own)
    except Exception as error:  # a layer of the user's own may raise anything
        warning = (
            f"it does not run on the meta device, so its cost is a guess from its parameters "
            f"({type(error).__name__}: {error})"
        )
        kept.bytes, outputs = _bytes(inputs), inputs
        forward.flops = _product(parameters, inputs)
        backward.flops = 2 * forward.flops if learns else 0
    crossing = _bytes(inputs) + _bytes(outputs)  # the least that a layer moves: it could do nothing at all
    cost = LayerCost(
        name=layer.name,
        flops_forward=forward.flops,
        flops_backward=backward.flops,
        moved_forward=max(forward.moved, crossing),
        # To add to a gradient is to read it, to read what is added, and to write it.
        moved_backward=max(backward.moved, crossing) + 3 * _bytes(trained) if learns else 0,
        parameters=sum(parameter.numel() for parameter in parameters),
        parameter_bytes=_bytes(parameters),
        output_bytes=_bytes(outputs),
        saved_bytes=kept.bytes,
        trained=sum(parameter.numel() for parameter in trained),
        put_off=sum(parameter.numel() for parameter in later),
        warning=warning,
    )
    return cost, outputs, nest


class _Work(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations of some kernels, and the bytes that all others read and write."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = self.moved = 0

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what is done in the context."""
        with FlopCounterMode(display=False) as counter, self:
            yield
        self.flops = counter.get_total_flops()

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run a kernel, and count its bytes unless its operations are counted."""
        result = func(*args, **(kwargs or {}))
        kernel = func.overloadpacket
        if kernel not in flop_registry and not func.is_view and kernel not in ALLOCATIONS:
            written = _bytes(_tensors(result))
            self.moved += written + (written if kernel in LOOKUPS else _bytes(_tensors((args, kwargs))))
        return result


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


class _Kept:
    """Adds up the memory behind the tensors that autograd keeps, the module's own left out."""

    def __init__(self, module: nn.Module) -> None:
        self.bytes = 0
        self._seen = {_memory(tensor) for tensor in (*module.parameters(), *module.buffers())}
        self._alive: list[Tensor] = []  # or the memory's address could come up again

    def save(self, tensor: Tensor) -> Tensor:
        """Count a tensor that is being kept."""
        memory = _memory(tensor)
        if memory not in self._seen:
            self._seen.add(memory)
            self._alive.append(tensor.detach())
            self.bytes += tensor.untyped_storage().nbytes()
        return tensor


def _memory(tensor: Tensor) -> int:
    """Return what tensors that share memory have in common; a meta tensor has no address."""
    return int(tensor.untyped_storage()._cdata)


def _product(parameters: Sequence[Tensor], inputs: Sequence[Tensor]) -> int:
    """Return the operations of a product of every vector of the largest input with all parameters."""
    vectors = max((tensor.numel() // max([1, *tensor.shape[-1:]]) for tensor in inputs), default=1)
    return 2 * vectors * sum(parameter.numel() for parameter in parameters)


def _on_meta(tensor: Tensor) -> Tensor:
    """Return a tensor's type and shape as the start of a graph of its own, as the engine cuts it."""
    meta = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    return meta.requires_grad_(tensor.requires_grad)


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
