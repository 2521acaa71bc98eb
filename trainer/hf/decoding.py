"""A stage of a Hugging Face model that keeps keys and values: the model's own forward, once a stage.

After a few tokens the forward is left out: the blocks are called alone, with arguments that were made for
several tokens at once (`ahead.py`), and the operations before and after them are repeated (`tape.py`).
Whether that gives the same bits is checked at the second token, the fourth, the eighth, and so on.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from trainer.activation import Activation
from trainer.cut.answers import stand_in
from trainer.cut.flow import Source
from trainer.cut.layer import CutLayer
from trainer.cut.parts import Part
from trainer.hf.ahead import Ahead, UnknownArgumentError
from trainer.hf.cache import KINDS, HFCache
from trainer.hf.stage_forward import StageForward, takes_cache
from trainer.hf.tape import Recorder, Tape
from trainer.models.decoding import StageCache, Step
from trainer.pipeline.precision import Precision
from trainer.pipeline.tensor_bytes import tensors_in

_BY_LENGTH = ("dynamic", "longrope")  # rotary angles that change for all columns as a text grows


class HFDecoder:
    """The layers of a stage.

    Args:
        parts: Their parts of the model.
        precision: What they compute in.
        device: Their device.
        last: Whether the stage is the last.

    Attributes:
        repeats: Whether the forward is left out, except to check that it may be.
    """

    def __init__(
        self, parts: Sequence[Part], precision: Precision, device: torch.device, *, last: bool
    ) -> None:
        self._forward = StageForward(parts, precision, device)
        self._precision = precision
        self._device = device
        self._last = last
        self.repeats = not _changes_with_length(self._forward.model.config)
        self._tokens: dict[int, int] = {}  # by number of rows: how many were computed
        self._before: dict[int, Tape] = {}  # likewise: from tokens to the first block
        self._after: dict[int, Tape] = {}  # from the last block to logits

    def new_cache(self) -> HFCache:
        """Return an empty cache."""
        return HFCache(self._forward.model.config, self._forward.mine)

    @torch.no_grad()
    def run(self, activation: Activation, step: Step, cache: StageCache) -> Activation:
        """Return the stage's output for the new columns."""
        assert isinstance(activation, Tensor)
        assert isinstance(cache, HFCache)
        if self.repeats and step.past and step.new == 1:
            output = self._next(activation, step, cache)
        else:
            output = self._forward.run(activation, step, cache.cache)
        cache.columns = step.past + step.new
        return self._precision.for_loss(output) if self._last else output

    def _next(self, given: Tensor, step: Step, cache: HFCache) -> Tensor:
        """Return the output for a new token."""
        rows = len(step.padding)
        number = self._tokens.get(rows, 0)
        self._tokens[rows] = number + 1
        if number == 0:
            return self._note(given, step, cache)
        ahead = self._ahead(step, cache)
        if ahead is None:
            return self._forward.run(given, step, cache.cache)
        if number & (number + 1) == 0:  # 1, 3, 7, ...
            return self._check(given, step, cache, ahead)
        hidden = self._before[rows].play(given, step.positions) if self._forward.first else given
        for index in range(len(self._forward.blocks)):
            hidden = self._forward.block(index, ahead.arguments(index, step.past, hidden))
        return self._after[rows].play(hidden) if self._last else hidden

    def _note(self, given: Tensor, step: Step, cache: HFCache) -> Tensor:
        """Run the forward, and note its operations before and after the blocks."""
        recorder, rows = Recorder(), len(step.padding)
        inputs, never = [given, step.positions], [step.mask]  # made here: they are not to be recorded
        with recorder:
            output = self._forward.run(given, step, cache.cache, "watch")
        seen = self._forward.seen
        if self._forward.first:
            self._keep(self._before, rows, Tape.of(recorder, inputs, seen.entry, never))
        if self._last:
            self._keep(self._after, rows, Tape.of(recorder, [seen.last], output, never))
        return output

    def _keep(self, tapes: dict[int, Tape], rows: int, tape: Tape | None) -> None:
        if tape is None:
            self.repeats = False
        else:
            tapes[rows] = tape

    def _check(self, given: Tensor, step: Step, cache: HFCache, ahead: Ahead) -> Tensor:
        """Run the forward, and compare with it what stands for it."""
        rows = len(step.padding)
        output = self._forward.run(given, step, cache.cache, "watch")
        seen, same = self._forward.seen, True
        if self._forward.first:
            same &= _same(self._before[rows].play(given, step.positions), seen.entry)
        if self._last:
            assert seen.last is not None
            same &= _same(self._after[rows].play(seen.last), output)
        for index, theirs in enumerate(seen.arguments):
            same &= _same(ahead.arguments(index, step.past, tensors_in(theirs)[0]), theirs)
        if not same and self._tokens[rows] > 2:  # noqa: PLR2004  (it was the same at the second token)
            raise RuntimeError(
                "the code around the model's blocks depends on more than was known of it, so tokens may be "
                "wrong: use generate.cache=false, and report the model"
            )
        self.repeats = same
        return output

    def _ahead(self, step: Step, cache: HFCache) -> Ahead | None:
        """Return the blocks' arguments for this column and the next ones, or None if they cannot be known."""
        if cache.ahead is None or not cache.ahead.covers(step.past):
            new = max(step.ahead, 1)
            columns = Step(step.padding, step.past, new, self._device)
            tokens = stand_in((len(step.padding), new), torch.int64, self._device)
            if self._forward.blocks:
                self._forward.run(tokens, columns, cache.cache, "skip")
            arguments = self._forward.seen.arguments if self._forward.blocks else []
            cache.ahead = Ahead(step.past, new, arguments, cache.windows)
            try:
                for index in range(len(arguments)):
                    cache.ahead.arguments(index, step.past, tokens)
            except UnknownArgumentError:
                cache.ahead, self.repeats = None, False
        return cache.ahead


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
    if not takes_cache(model):
        return False
    for number, crossing in enumerate(part.cuts.crossing):
        hidden = Source("argument", number, 0)
        if crossing.arguments != (hidden,) or crossing.sources:
            return False
    try:
        layers = DynamicCache(config=model.config).layers
    except Exception:  # a family without such a cache
        return False
    return len(layers) == len(part.blocks) and all(type(layer) in KINDS for layer in layers)
