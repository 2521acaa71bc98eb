"""A layer of a model that was cut: one segment of the model's own forward.

Before a layer runs with inputs of a new kind, its forward is rehearsed: every module answers with stand-ins.
That shows whether anything is computed around the block. If not, the block is called alone from then on.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from trainer.activation import Activation, TreeSpec, flatten, unflatten
from trainer.cut.answers import Call, stand_in
from trainer.cut.direct import Direct
from trainer.cut.forward import SHAPES, Carried, SegmentForward, autocast
from trainer.cut.parts import Part
from trainer.pipeline.tensor_bytes import tensors_in

_MOST_KNOWN = 16  # kinds of inputs; beyond them the oldest is forgotten


@dataclass(frozen=True)
class Inputs:
    """The structure of a model's inputs, which all micro-batches share.

    Attributes:
        nest: How they nest.
        dtypes: The types of their tensors.
    """

    nest: TreeSpec
    dtypes: tuple[torch.dtype, ...]

    @classmethod
    def of(cls, inputs: Activation) -> "Inputs":
        """Return that of an example."""
        tensors, nest = flatten(inputs)
        return cls(nest, tuple(tensor.dtype for tensor in tensors))


class CutLayer(nn.Module):
    """One segment of a model's forward; its parameters have the model's own names.

    Args:
        part: The model, in which this segment's modules are the layer's own.
        inputs: The structure of the model's inputs.
        calls: Calls the model.
    """

    def __init__(self, part: Part, inputs: Inputs, calls: Call) -> None:
        super().__init__()
        self.part = part  # not a module: most of the model is not this layer's
        self._inputs = inputs
        self._calls = calls
        self._direct: dict[Any, Direct | None] = {}
        part.register(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> "CutLayer":
        """Copy what is the layer's own."""
        return CutLayer(self.part.copy(memo), self._inputs, self._calls)

    def train(self, mode: bool = True) -> "CutLayer":
        """Set the model to training or to inference, as the model itself does it."""
        super().train(mode)
        self.part.model.train(mode)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "CutLayer":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.part.apply(fn, self)
        return self

    def forward(self, activation: Any) -> Any:
        """Run the segment.

        Args:
            activation: The model's inputs for segment 0; else what the segment before it returned.

        Returns:
            What the next segment takes; of the last one, the model's output.
        """
        if not self.part.segment:
            nest = flatten(activation)[1]
            if nest != self._inputs.nest:
                raise TypeError(
                    f"the model's inputs nest as {nest}, and those it was cut for as {self._inputs.nest}"
                )
            return SegmentForward(self.part, self._calls, activation, {}).run()
        kind = self._kind(activation)
        if kind not in self._direct:
            if len(self._direct) >= _MOST_KNOWN:
                self._direct.pop(next(iter(self._direct)))
            with _disable_current_modes(), torch.no_grad():
                self._direct[kind] = self._later(activation, rehearses=True).direct()
        direct = self._direct[kind]
        return self._later(activation).run() if direct is None else direct(activation)

    def _later(self, carried: Carried, *, rehearses: bool = False) -> SegmentForward:
        """Return the forward of a segment that is not the first."""
        device = tensors_in(carried)[0].device
        tensors = []
        for number, (text, dtype) in enumerate(
            zip(carried[SHAPES].split(" "), self._inputs.dtypes, strict=True)
        ):
            shape = tuple(map(int, text.split(","))) if text else ()
            given = carried.get(f"input.{number}.0")
            tensors.append(stand_in(shape, dtype, device) if given is None else given)
        inputs = unflatten(tensors, self._inputs.nest)
        return SegmentForward(self.part, self._calls, inputs, carried, rehearses=rehearses)

    def _kind(self, carried: Carried) -> Any:
        """Return what a rehearsal holds for."""
        tensors = tensors_in(carried)
        kinds = tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in tensors)
        return carried[SHAPES], kinds, self.training, autocast(tensors[0].device.type)
