"""A stage of a Hugging Face model that keeps keys and values: the model's own forward, once a stage.

[1] blocks of earlier stages    pass on what they are given
[2] the stage's first block     takes what the stage before has computed
[3] the stage's own blocks      run as they are; each keeps its keys and values
[4] the next stage's block      ends the forward
[5] modules elsewhere           answer with stand-ins

The model makes masks and positions itself, from the length of its cache. So every stage has a cache of all
layers, of which those elsewhere know only their length.
"""

import copy
import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from trainer.activation import Activation
from trainer.cut.answers import Answer, answering, stand_in
from trainer.cut.layer import CutLayer
from trainer.cut.parts import Part, tensors
from trainer.hf import attention
from trainer.models.decoding import StageCache, Step, joined
from trainer.pipeline.precision import Precision
from trainer.pipeline.tensor_bytes import tensors_in

_CACHES = ("cache", "past_key_values")  # the argument's name, and its earlier one
_KINDS = (DynamicLayer, DynamicSlidingWindowLayer)


class _Reached(BaseException):
    """The forward has reached the next stage's first block, with this tensor."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.tensor = tensor


class Elsewhere(DynamicLayer):  # type: ignore[misc]
    """A layer of the cache that another stage holds: it knows how long it is.

    Args:
        like: What it would be here.
        length: Returns the number of columns.
    """

    def __init__(self, like: DynamicLayer, length: Callable[[], int]) -> None:
        super().__init__()
        self.is_initialized = True
        self.is_sliding = like.is_sliding
        self._window = getattr(like, "sliding_window", None)
        self._length = length

    def get_seq_length(self) -> int:
        """Return the number of columns."""
        return self._length()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of columns that a mask has, and the first of them."""
        length = self._length()
        if self._window is None:
            return length + query_length, 0
        kept = min(length, self._window - 1)
        return kept + query_length, length - kept

    def update(self, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """Refuse: the layer's block is not here."""
        raise RuntimeError("a block of another stage has asked for its keys and values")


class HFCache:
    """The keys and values of a stage's layers for one group.

    Args:
        config: The model's configuration.
        mine: The numbers of the stage's layers.
    """

    def __init__(self, config: Any, mine: range) -> None:
        self.columns = 0
        self.cache = DynamicCache(config=config)
        self._mine = mine
        for number, layer in enumerate(self.cache.layers):
            if number not in mine:
                self.cache.layers[number] = Elsewhere(layer, lambda: self.columns)

    def join(self, kept: Sequence[int], others: StageCache | None, columns: int) -> None:
        """Keep some rows and append others."""
        assert others is None or isinstance(others, HFCache)
        for number in self._mine:
            layer = self.cache.layers[number]
            theirs = None if others is None else others.cache.layers[number]
            if not layer.is_initialized:
                if theirs is None:
                    continue
                layer.lazy_initialization(theirs.keys, theirs.values)
                layer.keys = layer.values = None
            length = columns
            if isinstance(layer, DynamicSlidingWindowLayer):
                layer.cumulative_length = columns
                length = min(columns, layer.sliding_window - 1)
            layer.keys = joined(layer.keys, kept, None if theirs is None else theirs.keys, length)
            layer.values = joined(layer.values, kept, None if theirs is None else theirs.values, length)
        self.columns = columns

    def tensors(self) -> list[Tensor]:
        """Return the keys and values."""
        layers = [layer for layer in self.cache.layers if getattr(layer, "keys", None) is not None]
        return [tensor for layer in layers for tensor in (layer.keys, layer.values)]


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
        self._blocks = [self._model.get_submodule(path) for path in cuts.blocks]
        called = {path for part in parts for path in part.modules}
        self._elsewhere = [self._model.get_submodule(path) for path in cuts.outer if path not in called]
        self._known = inspect.signature(self._model.forward).parameters
        self._answers = self._all_answers()
        self._given: Tensor  # what the stage before has computed

    def new_cache(self) -> HFCache:
        """Return an empty cache."""
        return HFCache(self._model.config, self._mine)

    @torch.no_grad()
    def run(self, activation: Activation, step: Step, cache: StageCache) -> Activation:
        """Return the stage's output for the new columns."""
        assert isinstance(activation, Tensor)
        assert isinstance(cache, HFCache)
        self._given = activation
        tokens = activation
        if not self._first:
            tokens = stand_in((len(step.padding), step.new), torch.int64, self._device)
        with answering(self._answers), self._precision.autocast(self._device):
            try:
                output = self._model(**self._arguments(tokens, step, cache)).logits[:, -1:]
            except _Reached as end:
                output = end.tensor
        cache.columns = step.past + step.new
        return self._precision.for_loss(output) if self._last else output

    def _arguments(self, tokens: Tensor, step: Step, cache: HFCache) -> dict[str, Any]:
        arguments = {
            "input_ids": tokens,
            "attention_mask": step.mask,
            "position_ids": step.positions,
            "use_cache": True,
            "logits_to_keep": 1,
            next(name for name in _CACHES if name in self._known): cache.cache,
        }
        return {name: value for name, value in arguments.items() if name in self._known}

    def _all_answers(self) -> dict[nn.Module, Answer]:
        answers: dict[nn.Module, Answer] = {module: self._stand_in(module) for module in self._elsewhere}
        entry = self._mine[0] if self._mine else 0
        for number, block in enumerate(self._blocks):
            if number >= self._mine.stop:
                answers[block] = _reached  # [4]
            elif number < entry:
                answers[block] = self._passing(block)  # [1]
            elif (number == entry and not self._first) or self._precision.compute is not torch.float32:
                answers[block] = partial(self._own, enters=number == entry and not self._first)
        return answers

    def _own(self, own: Any, args: Any, kwargs: Any, *, enters: bool) -> Any:
        if enters:
            args, kwargs = _replaced(args, kwargs, self._given)  # [2]
        leaves, tree = tree_flatten(own(*args, **kwargs))  # [3]
        convert = self._precision.between_layers
        return tree_unflatten([convert(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves], tree)

    def _passing(self, block: nn.Module) -> Answer:
        """Return an answer as the block's, in which its input takes the place of its output."""
        trees: list[tuple[list[Any], Any]] = []

        def answer(own: Any, args: Any, kwargs: Any) -> Any:
            if not trees:
                plain = {
                    key: None if isinstance(value, DynamicCache) else value for key, value in kwargs.items()
                }
                rest = tuple(None if isinstance(value, DynamicCache) else value for value in args)
                trees.append(self._part.shapes_of(block, own, rest, plain, None))
            leaves, tree = trees[0]
            hidden = tensors_in((args, kwargs))[0]
            return tree_unflatten([hidden if isinstance(leaf, Tensor) else leaf for leaf in leaves], tree)

        return answer

    def _stand_in(self, module: nn.Module) -> Answer:
        def answer(own: Any, args: Any, kwargs: Any) -> Any:
            leaves, tree = self._part.shapes_of(module, own, args, kwargs, None)
            made = [  # with memory: the code between modules may write into it
                torch.zeros(leaf.shape, dtype=leaf.dtype, device=self._device)
                if isinstance(leaf, Tensor)
                else leaf
                for leaf in leaves
            ]
            return tree_unflatten(made, tree)

        return answer  # [5]


def _reached(_own: Any, args: Any, kwargs: Any) -> Any:
    raise _Reached(tensors_in((args, kwargs))[0])


def _replaced(args: Any, kwargs: Any, hidden: Tensor) -> tuple[Any, Any]:
    """Return a block's arguments with another first tensor."""
    leaves, tree = tree_flatten((args, kwargs))
    place = next(i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor))
    leaves[place] = hidden
    args, kwargs = tree_unflatten(leaves, tree)
    return args, kwargs


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
    return len(layers) == len(part.blocks) and all(type(layer) in _KINDS for layer in layers)
