"""What every layer costs, without building the model: each layer in turn runs on torch's meta device.

Meta tensors have shapes but no numbers, so a model larger than the host is costed in a moment. Products of
matrices, convolutions and attention are counted by torch's flop counter (a multiplication and an addition
are two; causal attention counts as if every position saw all others). Whatever else a layer does costs what
its bytes cost, see `FLOPS_PER_BYTE`, so that no layer comes for nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from trainer.models.model import Activation, Layer, Model
from trainer.pipeline.activation import Nest, Structure, flatten, structure, unflatten

# So many operations take as long as moving a byte: about 100 GFLOP/s against 10 to 20 GB/s on a processor's
# core, 60 TFLOP/s in fp32 against 3.4 TB/s on an H100. Only the order of magnitude matters: these costs
# decide between cuts where counted operations do not.
FLOPS_PER_BYTE = 8


@dataclass(frozen=True)
class LayerCost:
    """What one layer costs for one micro-batch.

    Attributes:
        name: The layer's name.
        flops_forward: Operations counted in a forward pass.
        flops_backward: Operations counted in a backward pass: gradients of the parameters and, where
            something before them learns, of the inputs.
        parameters: How many numbers its parameters are, tied ones included.
        parameter_bytes: The bytes of these.
        input_bytes: The bytes of the activation that it takes.
        output_bytes: The bytes of the activation that it returns: the message, if the model is cut here.
        saved_bytes: What the forward pass keeps for the backward, parameters left out; tensors that share
            memory count once, but the layer before may keep some of them too.
        warning: Why the figures are a guess; None if they are not.
    """

    name: str
    flops_forward: int
    flops_backward: int
    parameters: int
    parameter_bytes: int
    input_bytes: int
    output_bytes: int
    saved_bytes: int
    warning: str | None = None

    @property
    def forward(self) -> float:
        """Return the relative time of a forward pass, in operations: reads the input, writes the output."""
        return self.flops_forward + FLOPS_PER_BYTE * (self.input_bytes + self.output_bytes)

    @property
    def backward(self) -> float:
        """Return the relative time of a backward pass, in operations.

        It reads what the forward pass read and wrote, reads and writes their gradients, and writes a
        gradient of every parameter.
        """
        moved = 2 * (self.input_bytes + self.output_bytes) + self.parameter_bytes
        return self.flops_backward + FLOPS_PER_BYTE * moved

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
    module = _build(layer)
    parameters = list(module.parameters())
    try:
        flops, saved_bytes, outputs, nest = _run(module, inputs, nest)
        warning = None
    except Exception as error:  # a layer of the user's own may raise anything
        flops, saved_bytes, outputs = _guess(parameters, inputs), _bytes(inputs), inputs
        warning = (
            f"it does not run on the meta device, so its cost is a guess from its parameters "
            f"({type(error).__name__}: {error})"
        )
    cost = LayerCost(
        layer.name,
        *flops,
        parameters=sum(parameter.numel() for parameter in parameters),
        parameter_bytes=_bytes(parameters),
        input_bytes=_bytes(inputs),
        output_bytes=_bytes(outputs),
        saved_bytes=saved_bytes,
        warning=warning,
    )
    return cost, outputs, nest


def _build(layer: Layer) -> nn.Module:
    """Build a layer without memory, or with it for a moment if the layer looks at its initial numbers."""
    try:
        with torch.device("meta"):
            module = layer.build()
    except Exception:  # as above; what is wrong with the layer itself is raised again below
        with torch.random.fork_rng(devices=[]):
            module = layer.build()
    return module.to("meta").train()


def _run(
    module: nn.Module, inputs: list[Tensor], nest: Nest
) -> tuple[tuple[int, int], int, list[Tensor], Nest]:
    """Return the operations of both passes, the bytes kept between them, and the flattened output."""
    kept = _Kept(module)
    with torch.enable_grad(), torch.device("meta"):
        with FlopCounterMode(display=False) as forward, saved_tensors_hooks(kept.save, lambda saved: saved):
            outputs, nest = flatten(module(unflatten(inputs, nest)))
        learning = [tensor for tensor in outputs if tensor.requires_grad]
        with FlopCounterMode(display=False) as backward:
            if learning:
                torch.autograd.backward(learning, [torch.ones_like(tensor) for tensor in learning])
    return (forward.get_total_flops(), backward.get_total_flops()), kept.bytes, outputs, nest


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


def _guess(parameters: Sequence[Tensor], inputs: Sequence[Tensor]) -> tuple[int, int]:
    """Return the operations of a product of every vector of the largest input with all parameters."""
    vectors = max((tensor.numel() // max([1, *tensor.shape[-1:]]) for tensor in inputs), default=1)
    forward = 2 * vectors * sum(parameter.numel() for parameter in parameters)
    return forward, 2 * forward


def _on_meta(tensor: Tensor) -> Tensor:
    """Return a tensor's type and shape as the start of a graph of its own, as the engine cuts it."""
    meta = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    return meta.requires_grad_(tensor.requires_grad)


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
