"""One run of a model's own forward, of which one segment is computed.

[1] from the top      modules of earlier segments answer with what has crossed the cut, or with stand-ins
[2] the block         takes the arguments that have crossed the cut
[3] what follows      runs as it is
[4] the next block    ends the forward; what later layers need is handed on
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from trainer.activation import Activation, flatten
from trainer.cut.answers import Answer, Call, answering, stand_in
from trainer.cut.direct import Direct
from trainer.cut.flow import Source
from trainer.cut.parts import Part
from trainer.pipeline.tensor_bytes import tensors_in
from trainer.seeds import generator_states

# What passes from a cut layer to the next: tensors by the names of their sources, and the inputs' shapes.
Carried = dict[str, Any]
SHAPES = "shapes"


def autocast(device: str) -> torch.dtype | None:
    """Return the type that autocast computes in on a kind of device; None: it is off there."""
    if device == "meta" or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


class _Reached(BaseException):
    """The forward has reached the next segment's block, with these arguments."""

    def __init__(self, tensors: list[Tensor]) -> None:
        super().__init__()
        self.tensors = tensors


class SegmentForward:
    """Runs the forward once.

    Args:
        part: The model, with the segment's modules.
        calls: Calls the model.
        inputs: The model's inputs; stand-ins for those that are not needed.
        carried: What has crossed the cut.
        rehearses: Whether the segment's own modules answer with stand-ins too.
    """

    def __init__(
        self,
        part: Part,
        calls: Call,
        inputs: Activation,
        carried: Carried,
        *,
        rehearses: bool = False,
    ) -> None:
        self._part = part
        self._cuts = part.cuts
        self._call_model = calls
        self._inputs = inputs
        self._tensors = flatten(inputs)[0]
        self._carried = carried
        self._device = tensors_in(carried or inputs)[0].device
        self._rehearses = rehearses
        self._returned: dict[str, Tensor] = {}  # by the segment's modules, by source
        self._calls = 0
        self._restore: Callable[[], None] | None = generator_states(self._device) if part.segment else None
        self._block: tuple[list[Any], Any] | None = None

    def run(self) -> Any:
        """Return what crosses the next cut; of the last segment, the model's output."""
        part = self._part
        answers: dict[nn.Module, Answer] = {
            module: partial(self._call, index) for index, module in enumerate(part.outer)
        }
        answers |= {module: partial(self._at, number) for number, module in enumerate(part.blocks)}
        with answering(answers):
            try:
                return self._call_model(part.model, self._inputs)
            except _Reached as end:
                return self._handed_on(end.tensors)

    def direct(self) -> Direct | None:
        """Rehearse; return what gives the same without the forward around the block, if anything does."""
        number = self._part.segment - 1
        if self._part.segment == len(self._cuts.blocks):
            return None
        output = self.run()
        if self._restore is not None:
            self._restore()
        assert self._block is not None
        arguments = zip(self._cuts.arguments[number], self._cuts.given[number], strict=True)
        if any(sources for sources, source in arguments if source is None):
            return None  # a mask, say, that follows from the inputs' values
        leaves, tree = self._block
        block = self._part.blocks[number]
        return Direct.of(block, leaves, tree, carried=self._carried, returned=self._returned, output=output)

    def _at(self, number: int, own: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Answer for a block."""
        mine, module = self._part.segment - 1, self._part.blocks[number]
        if number < mine:
            return self._answer(Source("block", number), module, own, args, kwargs)
        if number > mine:
            raise _Reached(tensors_in((args, kwargs)))  # [4]
        leaves, tree = tree_flatten((args, kwargs))  # [2]
        places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        for place, source in zip(places, self._cuts.given[mine], strict=True):
            if source is not None:
                leaves[place] = self._carried[str(source)]
        self._block = leaves, tree
        args, kwargs = tree_unflatten(leaves, tree)
        if self._restore is not None:
            self._restore()  # what was drawn up to here counts in other layers
        return self._compute(Source("block", number), module, own, args, kwargs)

    def _call(self, index: int, own: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Answer for a module outside of the blocks."""
        number, names = self._calls, self._cuts.outer
        self._calls += 1
        called, segment = self._cuts.calls[number]
        if called != index:
            raise RuntimeError(
                f"the forward calls {names[index]} where it called {names[called]} when it was analysed: the "
                "order of calls must not depend on values or on shapes"
            )
        source, module = Source("call", number), self._part.outer[index]
        if segment == self._part.segment:  # [3]
            return self._compute(source, module, own, args, kwargs)
        return self._answer(source, module, own, args, kwargs)

    def _compute(
        self, source: Source, module: nn.Module, own: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        rehearsed = self._rehearses
        output = self._answer(source, module, own, args, kwargs) if rehearsed else own(*args, **kwargs)
        for part, tensor in enumerate(tensors_in(output)):
            self._returned[str(source._replace(part=part))] = tensor
        return output

    def _answer(
        self, source: Source, module: nn.Module, own: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        """Return what a module would, from what has crossed the cut, or with stand-ins."""  # [1]
        leaves, tree = self._part.shapes_of(module, own, args, kwargs, autocast(self._device.type))
        answer, part = [], 0
        for leaf in leaves:
            if not isinstance(leaf, Tensor):
                answer.append(leaf)
                continue
            this = source._replace(part=part)
            value = self._carried.get(str(this))
            if value is None:
                value = stand_in(leaf.shape, leaf.dtype, self._device)
            answer.append(value.clone() if this in self._cuts.written else value)
            part += 1
        return tree_unflatten(answer, tree)

    def _handed_on(self, arguments: Sequence[Tensor]) -> Carried:
        crossing = self._cuts.crossing[self._part.segment]
        known = {**self._carried, **self._returned}
        carried: Carried = {
            str(source): arguments[source.part] if source.number == self._part.segment else known[str(source)]
            for source in crossing.arguments
        }
        carried |= {str(source): known[str(source)] for source in crossing.sources}
        carried |= {f"input.{number}.0": self._tensors[number] for number in crossing.inputs}
        carried[SHAPES] = " ".join(",".join(map(str, tensor.shape)) for tensor in self._tensors)
        return carried
