"""One forward on the meta device tells what crosses every cut, and which part of the model uses which weight.

    segment 0      from the start to the entry of block 0
    segment k      block k - 1, and what follows it to the entry of block k
    segment n      the last block, and what follows it

Blocks, modules outside of them that hold parameters, and modules that draw random numbers are opaque: what
they return is a source. Everything else depends on sources, and on shapes. A segment needs the sources that
it reads; those of earlier segments have to cross the cut. What depends on nothing but shapes (causal masks,
rotary angles) is computed anew in every segment.
"""

import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from trainer.activation import Activation
from trainer.cut.answers import Answer, Call, answering, on_meta
from trainer.cut.blocks import outer_modules
from trainer.cut.flow import NONE, Flow, Source, Sources
from trainer.errors import UserError
from trainer.models.all_steps import on_meta_device
from trainer.pipeline.tensor_bytes import tensors_in

_NUMBERS = ("meta tensor", "meta device", "data-dependent", "Meta tensors")  # in torch's complaints


@dataclass(frozen=True)
class Cuts:
    """What a forward does between its blocks.

    Attributes:
        blocks: The paths of the blocks, in the order of their calls.
        outer: The paths of the other modules whose outputs are sources.
        calls: Every call of an outer module, in order: its index in `outer`, and the segment.
        arguments: For every block, what each tensor among its arguments depends on.
        given: For every block, which argument each of these tensors was when a block first got it; None if
            it follows from the model's inputs.
        reads: For every segment, what it reads.
        written: The sources that code outside of modules writes into.
        unused: The paths of the parameters that nothing reads; the first segment keeps them.
    """

    blocks: tuple[str, ...]
    outer: tuple[str, ...]
    calls: tuple[tuple[int, int], ...]
    arguments: tuple[tuple[Sources, ...], ...]
    given: tuple[tuple[Source | None, ...], ...]
    reads: tuple[Sources, ...]
    written: Sources = NONE
    unused: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the segments, which are the layers'."""
        return ("first", *self.blocks)

    def modules(self, segment: int) -> list[str]:
        """Return the paths of the modules that a segment calls."""
        block = [self.blocks[segment - 1]] if segment else []
        called = [self.outer[index] for index, where in self.calls if where == segment]
        return list(dict.fromkeys([*block, *called]))

    def weights(self, segment: int) -> list[str]:
        """Return the paths of the parameters that a segment's code reads outside of modules."""
        read = [source.name for source in self.reads[segment] if source.kind == "weight"]
        return sorted([*read, *(() if segment else self.unused)])

    @cached_property
    def crossing(self) -> tuple["Crossing", ...]:
        """Return what crosses the entry of every block."""
        return tuple(map(self._crossing, range(len(self.blocks))))

    def _crossing(self, block: int) -> "Crossing":
        later = NONE.union(*self.reads[block + 1 :])
        mine = zip(self.arguments[block], self.given[block], strict=True)
        computed = NONE.union(*(sources for sources, source in mine if source is None))
        given = {source for each in self.given[block:] for source in each if source is not None}
        return Crossing(
            arguments=tuple(sorted(source for source in given if source.number <= block)),
            sources=tuple(sorted(source for source in later if self._before(source, block))),
            inputs=tuple(sorted({s.number for s in later | computed if s.kind == "input"})),
        )

    def _before(self, source: Source, block: int) -> bool:
        """Return whether a source was computed before the entry of a block."""
        if source.kind == "block":
            return source.number < block
        return source.kind == "call" and self.calls[source.number][1] <= block


@dataclass(frozen=True)
class Crossing:
    """What crosses the entry of a block.

    Attributes:
        arguments: The block's arguments that do not follow from the model's inputs alone, and those of
            earlier blocks that later ones get too.
        sources: Outputs of earlier blocks and calls that are read later.
        inputs: The indices of the model's inputs that are read later.
    """

    arguments: tuple[Source, ...]
    sources: tuple[Source, ...]
    inputs: tuple[int, ...]


def analyse(model: nn.Module, blocks: Sequence[str], inputs: Activation, calls: Call) -> Cuts:
    """Run a model's forward on the meta device, and return what its blocks exchange.

    Args:
        model: On the meta device, except for constants; it stays as it is.
        blocks: The paths of its blocks.
        inputs: An example of the model's inputs.
        calls: Calls it.

    Raises:
        UserError: The model cannot be cut there; says why.
    """
    outer = outer_modules(model, blocks)
    analysis = _Analysis(model.train(), tuple(blocks), outer).run(inputs, calls)
    if analysis.draws:
        outer = (*outer, *sorted(analysis.draws))
        analysis = _Analysis(model, tuple(blocks), outer).run(inputs, calls)
    evaluation = _Analysis(model.eval(), tuple(blocks), outer).run(inputs, calls).cuts
    model.train()
    if _lasting(evaluation) != _lasting(analysis.cuts):
        raise UserError(
            "the model's forward calls other modules, or in another order, in evaluation than in training "
            "(if self.training: ...): what it does outside of model.blocks must be the same in both"
        )
    return replace(analysis.cuts, unused=tuple(_unused(model, analysis.cuts)))


class _Analysis:
    def __init__(self, model: nn.Module, blocks: tuple[str, ...], outer: tuple[str, ...]) -> None:
        self._model = model
        self._flow = Flow(dict(model.named_parameters()))
        self._cuts = Cuts(blocks, outer, (), (), (), ())
        self._given: dict[tuple[int, int], tuple[Source, Tensor]] = {}  # arguments, by identity and version
        self._reads: list[Sources] = [NONE]
        self._inside = 0  # of opaque modules
        self.draws: set[str] = set()  # the paths of leaf modules outside that draw random numbers

    @property
    def cuts(self) -> Cuts:
        """Return what was found."""
        return self._cuts

    def run(self, inputs: Activation, calls: Call) -> "_Analysis":
        """Run the forward, check what it does, and return this."""
        cuts, flow = self._cuts, self._flow
        meta = on_meta(inputs)
        for number, tensor in enumerate(tensors_in(meta)):
            flow.mark(tensor, "input", number)
        answers: dict[nn.Module, Answer] = {}
        for name, module in self._model.named_modules():
            if next(module.children(), None) is None:
                answers[module] = partial(self._leaf, name)
        for index, path in enumerate(cuts.outer):
            answers[self._model.get_submodule(path)] = partial(self._call, index)
        for number, path in enumerate(cuts.blocks):
            answers[self._model.get_submodule(path)] = partial(self._block, number)
        with answering(answers), on_meta_device(), torch.no_grad(), flow:
            try:
                output = calls(self._model, meta)
            except UserError:
                raise
            except Exception as error:
                raise UserError(_failure(error, inputs)) from error
        self._read(tensors_in(output))
        self._cuts = replace(self._cuts, reads=tuple(self._reads), written=flow.written)
        self._check()
        return self

    def _block(self, number: int, own: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        cuts = self._cuts
        expected = len(cuts.arguments)
        if number < expected:
            raise UserError(
                f"{cuts.blocks[number]} is called again after {cuts.blocks[expected - 1]}: the model cannot "
                "be cut at a block that a forward calls more than once"
            )
        if number > expected:
            raise UserError(
                f"{cuts.blocks[number]} is called before {cuts.blocks[expected]}: name the blocks in the "
                "order of their calls; the model cannot be cut at one that is never called (layer drop?)"
            )
        tensors = tensors_in((args, kwargs))
        of_each = tuple(self._flow.of([tensor]) for tensor in tensors)
        given = tuple(self._first_given(number, part, tensor) for part, tensor in enumerate(tensors))
        new = [source is None or source.number == number for source in given]
        self._read([tensor for tensor, read in zip(tensors, new, strict=True) if read])
        self._cuts = replace(cuts, arguments=(*cuts.arguments, of_each), given=(*cuts.given, given))
        self._reads.append(NONE)
        self._flow.segment += 1
        output = self._opaque(cuts.blocks[number], own, args, kwargs)
        self._flow.mark(output, "block", number)
        return output

    def _first_given(self, number: int, part: int, tensor: Tensor) -> Source | None:
        """Return which argument a tensor was when a block first got it; None if it follows from the inputs.

        A later block that gets it too takes it from there. So the gradients of all add up in one place, as
        they do in the whole model, before they pass through what made the tensor.
        """
        if all(source.kind == "input" for source in self._flow.of([tensor])):
            return None
        key = id(tensor), int(tensor._version)
        source, _ = self._given.setdefault(key, (Source("argument", number, part), tensor))
        return source

    def _call(self, index: int, own: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self._inside:
            return own(*args, **kwargs)
        cuts = self._cuts
        self._read(tensors_in((args, kwargs)))
        output = self._opaque(cuts.outer[index], own, args, kwargs)
        self._flow.mark(output, "call", len(cuts.calls))
        self._cuts = replace(cuts, calls=(*cuts.calls, (index, self._flow.segment)))
        return output

    def _leaf(self, name: str, own: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self._flow.drew = False
        output = own(*args, **kwargs)
        if self._flow.drew:
            self.draws.add(name)
        return output

    def _opaque(self, path: str, own: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self._inside += 1
        with _disable_current_modes(), self._flow.inside(path):
            output = own(*args, **kwargs)
        self._inside -= 1
        return output

    def _read(self, tensors: Sequence[Tensor]) -> None:
        self._reads[-1] |= self._flow.of(tensors)

    def _check(self) -> None:
        cuts = self._cuts
        if len(cuts.arguments) < len(cuts.blocks):
            raise UserError(f"{cuts.blocks[len(cuts.arguments)]} is never called: it cannot be cut at")
        if self.draws:
            return  # the next analysis takes them as calls
        for segment, reads in enumerate(cuts.reads):
            if any(source.kind == "random" and source.number < segment for source in reads):
                raise UserError(
                    "random numbers that the forward draws between blocks are read again after "
                    f"{cuts.blocks[segment - 1]}, where they would be drawn anew: draw them in a module of "
                    "their own (nn.Dropout in place of F.dropout)"
                )


def _lasting(cuts: Cuts) -> Any:
    """Return what evaluation has in common with training: all but random numbers."""

    def without(sources: Sources) -> Sources:
        return frozenset(source for source in sources if source.kind != "random")

    reads = tuple(map(without, cuts.reads))
    return cuts.calls, reads, cuts.given, tuple(tuple(map(without, each)) for each in cuts.arguments)


def _unused(model: nn.Module, cuts: Cuts) -> Iterator[str]:
    """Yield the paths of the parameters that no segment uses, under any of their names."""
    segments = range(len(cuts.names))
    called = tuple(f"{path}." for segment in segments for path in cuts.modules(segment))
    read = {path for segment in segments for path in cuts.weights(segment)}
    every = list(model.named_parameters(remove_duplicate=False))
    used = {id(parameter) for path, parameter in every if path.startswith(called) or path in read}
    yield from (path for path, parameter in model.named_parameters() if id(parameter) not in used)


def _failure(error: Exception, inputs: Activation) -> str:
    """Return the message of a forward that fails on the meta device, with the line that it fails in."""
    frames = traceback.extract_tb(error.__traceback__)
    ours, torchs = str(Path(__file__).parents[1]), str(Path(torch.__file__).parent)
    own = [frame for frame in frames if not frame.filename.startswith((ours, torchs))]
    where = f"{Path(own[-1].filename).name}:{own[-1].lineno}: " if own else ""
    what = f"{where}{type(error).__name__}: {str(error).partition(chr(10))[0][:150]}"
    if isinstance(error, NotImplementedError) or any(words in str(error) for words in _NUMBERS):
        return (
            f"the model's forward cannot be analysed, because it does not run without numbers ({what}): what "
            "it does outside of model.blocks may depend on shapes, but not on values; make that part a block "
            "or give it with the data"
        )
    shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors_in(inputs))
    return f"the model's forward fails with the data's inputs, of shape {shapes}: {what}"
