"""One run of a Hugging Face model's own forward, of which a stage is computed.

[1] blocks of earlier stages    pass on what they are given
[2] the stage's first block     takes what the stage before has computed
[3] the stage's own blocks      run as they are; each keeps its keys and values
[4] the next stage's block      ends the forward
[5] modules elsewhere           answer with stand-ins
"""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_unflatten
from transformers import DynamicCache

from trainer.cut.answers import Answer, answering, stand_in
from trainer.cut.parts import Part, tensors
from trainer.hf import attention
from trainer.hf.ahead import Arguments
from trainer.models.decoding import Step
from trainer.pipeline.precision import Precision
from trainer.pipeline.tensor_bytes import tensors_in

_CACHES = ("cache", "past_key_values")  # the argument's name, and its earlier one


class _Reached(BaseException):
    """The forward has reached the end of the stage, with this tensor."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.tensor = tensor


@dataclass
class Seen:
    """What a watched forward has passed.

    Attributes:
        entry: What the stage's first block was given; without a block, what ended the forward.
        arguments: The arguments of the stage's blocks.
        last: What its last block returned.
    """

    entry: Tensor | None = None
    arguments: list[Arguments] = field(default_factory=list)
    last: Tensor | None = None


class StageForward:
    """Runs the forward.

    Args:
        parts: The parts of the model that the stage's layers are.
        precision: What they compute in.
        device: Their device.

    Attributes:
        model: The model; what the stage does not hold has no memory.
        mine: The numbers of the stage's blocks.
        blocks: These blocks.
        first: Whether the stage is the first.
        seen: What the latest forward that was watched has passed.
    """

    def __init__(self, parts: Sequence[Part], precision: Precision, device: torch.device) -> None:
        self.model: Any = _assembled(parts)
        self.first = parts[0].segment == 0
        numbers = [part.segment - 1 for part in parts if part.segment]
        self.mine = range(numbers[0], numbers[-1] + 1) if numbers else range(0)
        self.seen = Seen()
        self._part = parts[0]
        self._precision = precision
        self._device = device
        self._known = inspect.signature(self.model.forward).parameters
        self._given: Tensor  # what the stage before has computed
        self._form: tuple[list[Any], Any] | None = None  # of what a block returns
        cuts = parts[0].cuts
        blocks = [self.model.get_submodule(path) for path in cuts.blocks]
        self.blocks = [blocks[number] for number in self.mine]
        called = {path for part in parts for path in part.modules}
        elsewhere = [self.model.get_submodule(path) for path in cuts.outer if path not in called]
        others: dict[nn.Module, Answer] = {module: self._stand_in(module) for module in elsewhere}
        others |= {block: self._passing(block) for block in blocks[: self.mine.start]}
        others |= dict.fromkeys(blocks[self.mine.stop :], _reached)
        self._answers: dict[str, Mapping[nn.Module, Answer]] = {
            "run": others | self._own_answers(self._run_block),
            "watch": others | self._own_answers(self._watch_block),
            "skip": others | self._own_answers(self._skip_block),
        }

    @property
    def converts(self) -> bool:
        """Return whether a block's output is of another type than the next one takes."""
        return self._precision.compute is not torch.float32

    def run(self, given: Tensor, step: Step, cache: DynamicCache, how: str = "run") -> Tensor:
        """Return the stage's output for the new columns; on the last stage, the logits of the last one.

        Args:
            given: Tokens on the first stage; else what the stage before has computed.
            step: What is computed.
            cache: The keys and values, which are appended to.
            how: "run", "watch", or "skip": the stage's blocks compute nothing, and only their arguments
                count.
        """
        self._given, self.seen = given, Seen()
        shape = (len(step.padding), step.new)
        arguments = {
            "input_ids": given if self.first else stand_in(shape, torch.int64, self._device),
            "attention_mask": step.mask,
            "position_ids": step.positions,
            "use_cache": True,
            "logits_to_keep": 1,
            next(name for name in _CACHES if name in self._known): cache,
        }
        arguments = {name: value for name, value in arguments.items() if name in self._known}
        with answering(self._answers[how]), self._precision.autocast(self._device):
            try:
                logits: Tensor = self.model(**arguments).logits
            except _Reached as end:
                if not self.blocks:
                    self.seen.entry = end.tensor
                return end.tensor
        return logits[:, -1:]

    def block(self, number: int, arguments: Arguments) -> Tensor:
        """Return what one of the stage's blocks returns, called alone."""
        args, kwargs = arguments
        with self._precision.autocast(self._device):
            output = self._converted(self.blocks[number](*args, **kwargs))
        return output if isinstance(output, Tensor) else tensors_in(output)[0]

    def _own_answers(self, answer: Callable[..., Any]) -> dict[nn.Module, Answer]:
        return {block: partial(answer, number) for number, block in enumerate(self.blocks)}

    def _converted(self, output: Any) -> Any:
        """Return what a block returned in the type between layers."""
        if not self.converts:
            return output
        leaves, tree = tree_flatten(output)
        convert = self._precision.between_layers
        return tree_unflatten([convert(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves], tree)

    def _run_block(self, number: int, own: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if number == 0 and not self.first:
            args, kwargs = _replaced(args, kwargs, self._given)  # [2]
        return self._converted(own(*args, **kwargs))  # [3]

    def _watch_block(self, number: int, own: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if number == 0 and not self.first:
            args, kwargs = _replaced(args, kwargs, self._given)
        if number == 0:
            self.seen.entry = tensors_in((args, kwargs))[0]
        self.seen.arguments.append((args, kwargs))
        with _disable_current_modes():
            output = self._converted(own(*args, **kwargs))
        self._form = tree_flatten(output)
        self.seen.last = tensors_in(output)[0]
        return output

    def _skip_block(self, number: int, _own: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        assert self._form is not None, "no forward was watched before"
        self.seen.arguments.append((args, kwargs))
        hidden = tensors_in((args, kwargs))[0]
        if number == len(self.blocks) - 1:
            raise _Reached(hidden)
        return _shaped(self._form, hidden)

    def _passing(self, block: nn.Module) -> Answer:
        """Return an answer for a block of an earlier stage: its input takes the place of its output."""
        forms: list[tuple[list[Any], Any]] = []

        def answer(own: Any, args: Any, kwargs: Any) -> Any:  # [1]
            if not forms:
                rest = tuple(None if isinstance(each, DynamicCache) else each for each in args)
                named = {
                    key: None if isinstance(each, DynamicCache) else each for key, each in kwargs.items()
                }
                forms.append(self._part.shapes_of(block, own, rest, named, None))
            return _shaped(forms[0], tensors_in((args, kwargs))[0])

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


def takes_cache(model: nn.Module) -> bool:
    """Return whether a model's forward takes a cache."""
    return any(name in inspect.signature(model.forward).parameters for name in _CACHES)


def _reached(_own: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Answer for a block of a later stage."""
    raise _Reached(tensors_in((args, kwargs))[0])  # [4]


def _shaped(form: tuple[list[Any], Any], hidden: Tensor) -> Any:
    """Return a tensor in the form of a block's output."""
    leaves, tree = form
    return tree_unflatten([hidden if isinstance(leaf, Tensor) else leaf for leaf in leaves], tree)


def _replaced(args: Any, kwargs: Any, hidden: Tensor) -> Arguments:
    """Return a block's arguments with another first tensor."""
    if args and isinstance(args[0], Tensor):
        return (hidden, *args[1:]), kwargs
    name = next(name for name, value in kwargs.items() if isinstance(value, Tensor))
    return args, {**kwargs, name: hidden}


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
            weight = part.model.get_submodule(holder)._parameters[name]
            model.get_submodule(holder).register_parameter(name, weight)
    model.eval()
    config: Any = model.config
    if str(config._attn_implementation).startswith("sdpa"):
        config._attn_implementation = attention.implementation(padded=True)
    return model
