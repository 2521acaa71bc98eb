"""A layer's forward, the custom code of a stage: run so that it sees the same whenever and wherever it runs.

[1] seeded                what it draws depends on step, micro-batch and layer only
[2] inputs                it may write into them (`inputs.py`)
[3] buffers               a recomputed forward finds those of the first one (`buffers.py`)
[4] outputs               contiguous, in the type that the next layer takes
[5] compared              a recomputed forward must hand on the bits of the first one
[6] errors                name the layer, the step and the micro-batch
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from trainer.activation import TreeSpec, flatten, unflatten
from trainer.errors import add_note
from trainer.pipeline.buffers import ForwardBuffers, Found
from trainer.pipeline.inputs import WritableInputs
from trainer.pipeline.layer import BuiltLayer
from trainer.pipeline.precision import Precision
from trainer.pipeline.randomness import Randomness
from trainer.pipeline.recomputation import recomputing
from trainer.pipeline.tensor_bytes import as_integers

Outputs = tuple[list[Tensor], TreeSpec]

# On a GPU a comparison waits for the device, so there it is made in the first steps, and then now and again.
_FIRST_STEPS = 2
_EVERY = 100


class LayerForward:
    """Runs the forward of one layer.

    Args:
        layer: The layer.
        stage: The number of its stage.
        device: Its device.
        randomness: Seeds what it draws from.
        precision: The precision that it computes in.
        convert: Converts each of its outputs.
        recomputed: Whether backwards run its forward again.
        writes: Whether it is known to write into its inputs.
    """

    def __init__(
        self,
        layer: BuiltLayer,
        stage: int,
        device: torch.device,
        *,
        randomness: Randomness,
        precision: Precision,
        convert: Callable[[Tensor], Tensor],
        recomputed: bool,
        writes: bool = False,
    ) -> None:
        self.layer = layer
        self.buffers = ForwardBuffers(layer.module, recomputed=recomputed)
        self._stage = stage
        self._device = device
        self._randomness = randomness
        self._precision = precision
        self._convert = convert
        self._recomputed = recomputed
        self._inputs = WritableInputs(writes=writes)
        # By micro-batch, for the forward that runs again: what the first one found, and what it handed on.
        self._first: dict[int, tuple[Found, Outputs]] = {}

    def run(self, micro_batch: int, nest: TreeSpec, *leaves: Tensor) -> Outputs:
        """Run the forward; a backward that recomputes calls this again with the same arguments."""
        try:
            if recomputing():
                return self._run_again(micro_batch, nest, leaves)
            if torch.is_grad_enabled():
                return self._run_first(micro_batch, nest, leaves)
            return self._compute(micro_batch, nest, leaves)
        except Exception as error:
            add_note(error, self._place(micro_batch))  # [6]
            if self._precision.may_have_caused(error):
                add_note(error, "precision may be the cause: layers compute in half precision; try fp32")
            raise

    def _run_first(self, micro_batch: int, nest: TreeSpec, leaves: Sequence[Tensor]) -> Outputs:
        found = self.buffers.before()  # [3]
        outputs, nest = self._compute(micro_batch, nest, leaves, undo=lambda: self.buffers.undo(found))
        self.buffers.after(found)
        if self._recomputed and any(output.requires_grad for output in outputs):
            self._first[micro_batch] = found, ([output.detach() for output in outputs], nest)
        return outputs, nest

    def _run_again(self, micro_batch: int, nest: TreeSpec, leaves: Sequence[Tensor]) -> Outputs:
        found, first = self._first.pop(micro_batch)
        with self.buffers.as_found(found):
            again = self._compute(micro_batch, nest, leaves)
        if self._compares() and not _same_bits(first, again):  # [5]
            raise RuntimeError(
                "its forward, run again for the backward, gives other results than the first time, so its "
                "gradients would be wrong: it depends on something that changes between the two (an "
                "attribute or a global that it changes, a generator of its own, a kernel that is not "
                "deterministic); keep such state in a buffer, draw from torch's, NumPy's or Python's global "
                "generators, or use memory.recompute=none"
            )
        return again

    def _compute(
        self,
        micro_batch: int,
        nest: TreeSpec,
        leaves: Sequence[Tensor],
        undo: Callable[[], None] = lambda: None,
    ) -> Outputs:
        def call(inputs: list[Tensor]) -> Outputs:
            self._randomness.seed_layer(self.layer.name, micro_batch, self._device)  # [1]
            with self._precision.autocast(self._device):
                return flatten(self.layer.module(unflatten(inputs, nest)))

        tensors, nest_of_outputs = self._inputs.call(call, leaves, undo)  # [2]
        return [self._convert(tensor).contiguous() for tensor in tensors], nest_of_outputs  # [4]

    def _compares(self) -> bool:
        step = self._randomness.step or 0
        return self._device.type == "cpu" or step <= _FIRST_STEPS or step % _EVERY == 0

    def _place(self, micro_batch: int) -> str:
        return f"in layer {self.layer.name!r} of stage {self._stage}: {self._randomness.place(micro_batch)}"


def _same_bits(first: Outputs, again: Outputs) -> bool:
    if first[1] != again[1] or len(first[0]) != len(again[0]):
        return False
    return all(
        one.shape == other.shape and torch.equal(as_integers(one), as_integers(other))
        for one, other in zip(first[0], again[0], strict=True)
    )
