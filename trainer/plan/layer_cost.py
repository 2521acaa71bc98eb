"""The cost of a layer: operations, bytes, and what else the plan must know of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from trainer.activation import ActivationSpec
from trainer.pipeline.recomputation import Recompute

# Operations per byte at which computing and moving data take equally long: about 100 GFLOP/s against 10 to
# 20 GB/s on a CPU core, 60 TFLOP/s in fp32 against 3.4 TB/s on an H100. Only the order of magnitude matters:
# these costs choose between cuts where counted operations do not.
FLOPS_PER_BYTE = 8


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
        warning: Why the figures are a guess, or hold for one example only; None if they are counted.
        writes_inputs: Whether its forward may write into its inputs, as `x += 1` does.
        dynamic: Whether the shapes of its outputs may depend on the values of its inputs, as those of
            `x[x > 0]` do: its forward has such an operation, or reads a value.
        loss_writes: Of the last layer: whether the loss writes into its outputs.
        outputs: The types and shapes of what it returns; None if they are a guess.
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
    writes_inputs: bool = False
    dynamic: bool = False
    loss_writes: bool = False
    outputs: ActivationSpec | None = None

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
