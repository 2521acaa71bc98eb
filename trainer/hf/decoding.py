"""A stage of a Hugging Face model that keeps keys and values: the model's own forward, once a stage.

[1] blocks of earlier stages    pass on what they are given
[2] the stage's first block     takes what the stage before has computed
[3] the stage's own blocks      run as they are; each keeps its keys and values
[4] the next stage's block      ends the forward
[5] modules elsewhere           answer with stand-ins

After a few tokens the forward is left out: the blocks are called alone, with arguments that were made for
several tokens at once (`ahead.py`), and the operations before and after them are repeated (`tape.py`).
Whether that gives the same bits is checked at the second token, the fourth, the eighth, and so on.
"""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_unflatten
from transformers import DynamicCache

from trainer.activation import Activation
from trainer.cut.answers import Answer, answering, stand_in
from trainer.cut.layer import CutLayer
from trainer.cut.parts import Part, tensors
from trainer.hf import attention
from trainer.hf.ahead import Ahead, Arguments, UnknownArgumentError
from trainer.hf.cache import KINDS, HFCache
from trainer.hf.tape import Recorder, Tape
from trainer.models.decoding import StageCache, Step
from trainer.pipeline.precision import Precision
from trainer.pipeline.tensor_bytes import tensors_in

_CACHES = ("cache", "past_key_values")  # the argument's name, and its earlier one
_BY_LENGTH = ("dynamic", "longrope")  # rotary angles that change for all columns as a text grows


class _Reached(BaseException):
    """The forward has reached the end of the stage, with this tensor."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.tensor = tensor


@dataclass
class _Seen:
    """What a watched forward has passed.

    Attributes:
        entry: What the stage's first block was given; without a block, what ended the forward.
        arguments: The arguments of the stage's blocks.
        last: What its last block returned.
    """

    entry: Tensor | None = None
    arguments: list[Arguments] = field(default_factory=list)
    last: Tensor | None = None


class HFDecoder:
    """The layers of a stage.

    Args:
        parts: Their parts of the model.
        precision: What they compute in.
        device: Their device.
        last: Whether the stage is the last.
    """

    def __init__(
        self, parts: Sequence[Part], precision: Precision, device: torch.device, *, last: bool
    ) -> None:
        self._part = parts[0]
        self._model: Any = _assembled(parts)
        self._precision = precision
        self._device = device
        self._last = last
        self._first = parts[0].segment == 0
        numbers = [part.segment - 1 for part in parts if part.segment]
        self._mine = range(numbers[0], numbers[-1] + 1) if numbers else range(0)
        cuts = parts[0].cuts
        blocks = [self._model.get_submodule(path) for path in cuts.blocks]
        self._own = [blocks[number] for number in self._mine]
        called = {path for part in parts for path in part.modules}
        elsewhere = [self._model.get_submodule(path) for path in cuts.outer if path not in called]
        self._known = inspect.signature(self._model.forward).parameters
        others: dict[nn.Module, Answer] = {module: self._stand_in(module) for module in elsewhere}
        others |= {block: self._passing(block) for block in blocks[: self._mine.start]}
        others |= dict.fromkeys(blocks[self._mine.stop :], self._reached)
        converts = precision.compute is not torch.float32
        self._answers = others | {
            block: partial(self._run_own, number)
            for number, block in enumerate(self._own)
            if converts or (number == 0 and not self._first)
        }
        self._watching = others | {
            block: partial(self._watch, number) for number, block in enumerate(self._own)
        }
        self._skipping = others | {
            block: partial(self._skip, number) for number, block in enumerate(self._own)
        }
        self._given: Tensor  # what the stage before has computed
        self._seen = _Seen()
        self._form: tuple[list[Any], Any] | None = None  # of what a block returns
        self.repeats = not _changes_with_length(self._model.config)
        self._tokens: dict[int, int] = {}  # by number of rows: how many were computed
        self._before: dict[int, Tape] = {}  # by number of rows
        self._after: dict[int, Tape] = {}

    def new_cache(self) -> HFCache:
        """Return an empty cache."""
        return HFCache(self._model.config, self._mine)

    @torch.no_grad()
    def run(self, activation: Activation, step: Step, cache: StageCache) -> Activation:
        """Return the stage's output for the new columns."""
        assert isinstance(activation, Tensor)
        assert isinstance(cache, HFCache)
        self._given = activation
        if self.repeats and step.past and step.new == 1:
            output = self._next(activation, step, cache)
        else:
            output = self._forward(activation, step, cache, self._answers)
        cache.columns = step.past + step.new
        return self._precision.for_loss(output) if self._last else output

    def _next(self, activation: Tensor, step: Step, cache: HFCache) -> Tensor:
        """Return the output for a new token."""
        rows = len(step.padding)
        number = self._tokens.get(rows, 0)
        self._tokens[rows] = number + 1
        if number == 0:
            return self._note(activation, step, cache)
        if number & (number + 1) == 0:  # 1, 3, 7, ...
            return self._check(activation, step, cache, first=number == 1)
        hidden = self._before[rows].play(activation, step.positions) if self._first else activation
        if self._own:
            ahead = self._ahead(step, cache)
            if ahead is None:
                return self._forward(activation, step, cache, self._answers)
            with self._precision.autocast(self._device):
                for index, block in enumerate(self._own):
                    args, kwargs = ahead.arguments(index, step.past, hidden)
                    hidden = tensors_in(self._converted(block(*args, **kwargs)))[0]
        return self._after[rows].play(hidden) if self._last else hidden

    def _note(self, activation: Tensor, step: Step, cache: HFCache) -> Tensor:
        """Run a forward, and note its operations before and after the blocks."""
        recorder, rows, inputs = Recorder(), len(step.padding), [activation, step.positions]
        never = [step.mask]
        output = self._watched(activation, step, cache, recorder)
        for wanted, tapes, given, target in (
            (self._first, self._before, inputs, self._seen.entry),
            (self._last, self._after, [self._seen.last], output),
        ):
            if not wanted:
                continue
            known = [tensor for tensor in given if tensor is not None]
            tape = None if target is None else Tape.of(recorder, known, target, never)
            if tape is None:
                self.repeats = False
            else:
                tapes[rows] = tape
        return output

    def _check(self, activation: Tensor, step: Step, cache: HFCache, *, first: bool) -> Tensor:
        """Run a forward, and compare with it what stands for it."""
        rows = len(step.padding)
        ahead = self._ahead(step, cache) if self._own else None
        output = self._watched(activation, step, cache)
        seen, same = self._seen, self.repeats
        if self._first:
            same &= _same(self._before[rows].play(activation, step.positions), seen.entry)
        if self._last:
            assert seen.last is not None
            same &= _same(self._after[rows].play(seen.last), output)
        for index, theirs in enumerate(seen.arguments):
            if ahead is not None:
                same &= _same(ahead.arguments(index, step.past, tensors_in(theirs)[0]), theirs)
        if not same and self.repeats and not first:
            raise RuntimeError(
                "the code around the model's blocks depends on more than was known of it, so tokens may be "
                "wrong: use generate.cache=false, and report the model"
            )
        self.repeats = same
        return output

    def _watched(
        self, activation: Tensor, step: Step, cache: HFCache, recorder: Recorder | None = None
    ) -> Tensor:
        self._seen = _Seen()
        with nullcontext() if recorder is None else recorder:
            output = self._forward(activation, step, cache, self._watching)
        if not self._own:
            self._seen.entry = output
        return output

    def _ahead(self, step: Step, cache: HFCache) -> Ahead | None:
        """Return the blocks' arguments for this column and the next ones, or None if they cannot be known."""
        if cache.ahead is None or not cache.ahead.covers(step.past):
            self._seen = _Seen()
            rows, new = len(step.padding), max(step.ahead, 1)
            tokens = stand_in((rows, new), torch.int64, self._device)
            self._forward(tokens, Step(step.padding, step.past, new, self._device), cache, self._skipping)
            cache.ahead = Ahead(step.past, new, self._seen.arguments, cache.windows)
            try:
                for index in range(len(self._own)):
                    cache.ahead.arguments(index, step.past, tokens)
            except UnknownArgumentError:
                cache.ahead, self.repeats = None, False
        return cache.ahead

    def _forward(
        self, activation: Tensor, step: Step, cache: HFCache, answers: Mapping[nn.Module, Answer]
    ) -> Tensor:
        """Run the model's forward, as far as the stage goes."""
        shape = (len(step.padding), step.new)
        tokens = activation if self._first else stand_in(shape, torch.int64, self._device)
        arguments = {
            "input_ids": tokens,
            "attention_mask": step.mask,
            "position_ids": step.positions,
            "use_cache": True,
            "logits_to_keep": 1,
            next(name for name in _CACHES if name in self._known): cache.cache,
        }
        arguments = {name: value for name, value in arguments.items() if name in self._known}
        with answering(answers), self._precision.autocast(self._device):
            try:
                logits: Tensor = self._model(**arguments).logits
            except _Reached as end:
                return end.tensor
        return logits[:, -1:]

    def _converted(self, output: Any) -> Any:
        """Return what a block returned in the type between layers."""
        leaves, tree = tree_flatten(output)
        convert = self._precision.between_layers
        return tree_unflatten([convert(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves], tree)

    def _run_own(self, number: int, own: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Answer for a block of the stage."""
        if number == 0 and not self._first:
            args, kwargs = _replaced(args, kwargs, self._given)  # [2]
        return self._converted(own(*args, **kwargs))  # [3]

    def _watch(self, number: int, own: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Answer for a block of the stage, and note what it takes and returns."""
        if number == 0 and not self._first:
            args, kwargs = _replaced(args, kwargs, self._given)
        if number == 0:
            self._seen.entry = tensors_in((args, kwargs))[0]
        self._seen.arguments.append((args, kwargs))
        with _disable_current_modes():
            output = self._converted(own(*args, **kwargs))
        self._form = tree_flatten(output)
        self._seen.last = tensors_in(output)[0]
        return output

    def _skip(self, number: int, _own: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Answer for a block of the stage with what it takes, and note that."""
        assert self._form is not None
        self._seen.arguments.append((args, kwargs))
        hidden = tensors_in((args, kwargs))[0]
        if number == len(self._own) - 1:
            raise _Reached(hidden)
        leaves, tree = self._form
        return tree_unflatten([hidden if isinstance(leaf, Tensor) else leaf for leaf in leaves], tree)

    def _passing(self, block: nn.Module) -> Answer:
        """Return an answer for a block of an earlier stage: its input takes the place of its output."""
        forms: list[tuple[list[Any], Any]] = []

        def answer(own: Any, args: Any, kwargs: Any) -> Any:  # [1]
            if not forms:
                rest = tuple(None if isinstance(value, DynamicCache) else value for value in args)
                named = {
                    key: None if isinstance(each, DynamicCache) else each for key, each in kwargs.items()
                }
                forms.append(self._part.shapes_of(block, own, rest, named, None))
            leaves, tree = forms[0]
            hidden = tensors_in((args, kwargs))[0]
            return tree_unflatten([hidden if isinstance(leaf, Tensor) else leaf for leaf in leaves], tree)

        return answer

    def _stand_in(self, module: nn.Module) -> Answer:
        """Return an answer for a module outside of the blocks that another stage has."""

        def answer(own: Any, args: Any, kwargs: Any) -> Any:  # [5]
            leaves, tree = self._part.shapes_of(module, own, args, kwargs, None)
            made = [  # with memory: the code between modules may write into it
                torch.zeros(leaf.shape, dtype=leaf.dtype, device=self._device)
                if isinstance(leaf, Tensor)
                else leaf
                for leaf in leaves
            ]
            return tree_unflatten(made, tree)

        return answer

    @staticmethod
    def _reached(_own: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Answer for a block of a later stage."""
        raise _Reached(tensors_in((args, kwargs))[0])  # [4]


def _replaced(args: Any, kwargs: Any, hidden: Tensor) -> Arguments:
    """Return a block's arguments with another first tensor."""
    if args and isinstance(args[0], Tensor):
        return (hidden, *args[1:]), kwargs
    name = next(name for name, value in kwargs.items() if isinstance(value, Tensor))
    return args, {**kwargs, name: hidden}


def _same(ours: Any, theirs: Any) -> bool:
    """Return whether nested values are equal to the bit."""
    if isinstance(ours, Tensor):
        return (
            isinstance(theirs, Tensor)
            and ours.shape == theirs.shape
            and ours.dtype == theirs.dtype
            and torch.equal(ours, theirs)
        )
    if type(ours) in (tuple, list):
        return len(ours) == len(theirs) and all(map(_same, ours, theirs))
    if type(ours) is dict:
        return list(ours) == list(theirs) and all(_same(ours[key], theirs[key]) for key in ours)
    return ours is theirs or bool(ours == theirs)


def _changes_with_length(config: Any) -> bool:
    """Return whether a configuration has rotary angles that depend on how long a text is by now."""

    def kinds(value: Any) -> list[Any]:
        if not isinstance(value, dict):
            return []
        return [value.get("rope_type"), *(kind for each in value.values() for kind in kinds(each))]

    found = kinds(config.to_dict())
    return any(kind in found for kind in _BY_LENGTH)


def _assembled(parts: Sequence[Part]) -> nn.Module:
    """Return a copy of the model in which the modules of all parts are, and which shares their tensors."""
    first = parts[0]
    memo: dict[int, Any] = {id(module): module for module in (*first.blocks, *first.outer)}
    memo |= {id(tensor): tensor for _, tensor in tensors(first.model)}
    model = copy.deepcopy(first.model, memo)
    for part in parts[1:]:
        for path in part.modules:
            model.set_submodule(path, part.model.get_submodule(path))
        for path in part.weights:
            holder, _, name = path.rpartition(".")
            model.get_submodule(holder).register_parameter(
                name, part.model.get_submodule(holder)._parameters[name]
            )
    model.eval()
    config: Any = model.config
    if str(config._attn_implementation).startswith("sdpa"):
        config._attn_implementation = attention.implementation(padded=True)
    return model


def decoder_of(
    layers: Sequence[nn.Module], precision: Precision, device: torch.device, *, last: bool
) -> HFDecoder | None:
    """Return a stage's layers with caches, or None if its model cannot have them."""
    parts = [layer.part for layer in layers if isinstance(layer, CutLayer)]
    if len(parts) < len(layers) or not _can(parts[0]):
        return None
    return HFDecoder(parts, precision, device, last=last)


def _can(part: Part) -> bool:
    """Return whether only hidden states cross the cuts, and the cache is one of keys and values."""
    model: Any = part.model
    if not any(name in inspect.signature(model.forward).parameters for name in _CACHES):
        return False
    if any(crossing.arguments != (0,) or crossing.sources for crossing in part.cuts.crossing):
        return False
    try:
        layers = DynamicCache(config=model.config).layers
    except Exception:  # a family without such a cache
        return False
    return len(layers) == len(part.blocks) and all(type(layer) in KINDS for layer in layers)
