"""Layers that keep keys and values, so that a new token of a text costs one column instead of all of them.

A group of texts is a batch whose rows end in the same column; shorter ones begin with padding:

    row 0    . . . a b c d | e        columns that are cached, and a new one
    row 1    . f g h i j k | l
    row 2    m n o p q r s | t

A layer that can do this has a method `decode` beside its forward. Groups change between rounds of tokens:
rows leave, others join, and columns in which every row has padding go.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.activation import Activation


@dataclass(frozen=True)
class Step:
    """What one forward of a group computes.

    Attributes:
        padding: How many columns of padding each row begins with.
        past: The number of columns that are cached.
        new: The number of columns that it computes.
        device: Where.
        ahead: How many more columns the group will get before rows leave or join, these included, if known.
    """

    padding: tuple[int, ...]
    past: int
    new: int
    device: torch.device
    ahead: int = 0

    @cached_property
    def mask(self) -> Tensor:
        """Return which columns hold tokens, int64 [batch, past + new]."""
        columns = torch.arange(self.past + self.new, device=self.device)
        return (columns >= self._padding).long()

    @cached_property
    def positions(self) -> Tensor:
        """Return the positions of the new columns in their texts, int64 [batch, new]; 0 for padding."""
        columns = torch.arange(self.past, self.past + self.new, device=self.device)
        return (columns - self._padding).clamp(min=0)

    @cached_property
    def attention(self) -> Tensor:
        """Return what the new columns attend to, bool [batch, 1, new, past + new].

        That is all of their text so far; padding attends to itself, because something must.
        """
        columns = torch.arange(self.past + self.new, device=self.device)
        own = columns[self.past :, None]
        return (((columns <= own) & (columns >= self._padding[..., None])) | (columns == own))[:, None]

    @cached_property
    def _padding(self) -> Tensor:
        return torch.tensor(self.padding, device=self.device)[:, None]


class KeysValues:
    """The keys and values of one layer, each [batch, heads, columns, head width]; None before the first."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return those of all columns, with new ones."""
        if self.keys is not None and self.values is not None:
            keys, values = torch.cat((self.keys, keys), 2), torch.cat((self.values, values), 2)
        self.keys, self.values = keys, values
        return keys, values

    def join(self, kept: Sequence[int], others: "KeysValues | None", columns: int) -> None:
        """Keep some rows, and append those of others, all of them ending in the same column.

        Args:
            kept: The rows to keep.
            others: Those to append.
            columns: How many columns there are then.
        """
        self.keys = joined(self.keys, kept, None if others is None else others.keys, columns)
        self.values = joined(self.values, kept, None if others is None else others.values, columns)


def joined(ours: Tensor | None, kept: Sequence[int], others: Tensor | None, columns: int) -> Tensor | None:
    """Return some rows of a tensor [batch, heads, columns, width], and all of another, aligned at the end."""
    parts = []
    if ours is not None and kept:
        every = list(kept) == list(range(len(ours)))
        parts.append(ours if every else ours[torch.tensor(kept, device=ours.device)])
    if others is not None:
        parts.append(others)
    parts = [aligned(part, columns) for part in parts]
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def aligned(tensor: Tensor, columns: int) -> Tensor:
    """Return the last columns of a tensor [batch, heads, columns, width], or all after columns of zeros."""
    missing = columns - tensor.shape[2]
    return F.pad(tensor, (0, 0, missing, 0)) if missing >= 0 else tensor[:, :, -missing:]


@runtime_checkable
class Decodes(Protocol):
    """A layer that can keep keys and values."""

    def decode(self, activation: Activation, step: Step, past: KeysValues) -> Activation:
        """Return its output for the new columns, in evaluation; the last layer's may be the last column's.

        Args:
            activation: The output of the layer before it for the new columns, [batch, new, ...].
            step: What is computed.
            past: Its keys and values of the columns before; the layer appends those of the new ones.
        """


class StageCache(Protocol):
    """What the layers of a stage keep for one group."""

    def join(self, kept: Sequence[int], others: "StageCache | None", columns: int) -> None:
        """Keep some rows and append others, as `KeysValues.join`."""

    def tensors(self) -> list[Tensor]:
        """Return what is kept."""


class Decoder(Protocol):
    """The layers of a stage, with caches."""

    def new_cache(self) -> StageCache:
        """Return an empty cache."""

    def run(self, activation: Activation, step: Step, cache: StageCache) -> Activation:
        """Return the stage's output for the new columns, and keep their keys and values.

        The last stage returns the logits of the last column, [batch, 1, vocabulary].
        """
