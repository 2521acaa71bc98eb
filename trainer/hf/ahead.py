"""What the code around a model's blocks makes for the next tokens of a group, made for all of them at once.

For a new token, that code makes masks and rotary angles, and takes as long as a block or two. All of it
follows from lengths. So one forward for the next n columns, in which the blocks compute nothing, has it for n
tokens:

    a mask       [batch, 1, n, columns]     of which a token takes its row, and the columns up to its own
    angles       [batch, n, width]          its row
    positions    [batch, n]                 its column
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
_MASK, _ROWS, _POSITIONS = 4, 3, 2  # dimensions


class UnknownArgumentError(Exception):
    """A block takes a tensor of which it is not known what belongs to one token."""


@dataclass
class Ahead:
    """The arguments of a stage's blocks for the next columns of a group.

    Attributes:
        past: The number of columns that are cached before them.
        new: How many they are.
        blocks: The arguments of each block.
        windows: The sliding window of each block, or None.
    """

    past: int
    new: int
    blocks: Sequence[Arguments]
    windows: Sequence[int | None]
    _sliced: dict[tuple[int, int | None], Tensor] = field(default_factory=dict)
    _column: int = -1

    def covers(self, past: int) -> bool:
        """Return whether the column after `past` cached ones is among them."""
        return self.past <= past < self.past + self.new

    def arguments(self, block: int, past: int, hidden: Tensor) -> Arguments:
        """Return a block's arguments for the column after `past` cached ones.

        Raises:
            UnknownArgumentError: One of them is a tensor of an unknown kind.
        """
        if past != self._column:
            self._sliced.clear()  # blocks share most of them
            self._column = past
        args, kwargs = self.blocks[block]
        window = self.windows[block]
        first = [hidden]

        def of(value: Any) -> Any:
            if isinstance(value, Tensor):
                return first.pop() if first else self._of_column(value, past, window)
            if type(value) in (tuple, list):
                return type(value)(map(of, value))
            if type(value) is dict:
                return {key: of(each) for key, each in value.items()}
            return value

        return tuple(map(of, args)), {key: of(value) for key, value in kwargs.items()}

    def _of_column(self, tensor: Tensor, past: int, window: int | None) -> Tensor:
        key = id(tensor), window
        if key not in self._sliced:
            self._sliced[key] = self._slice(tensor, past - self.past, window)
        return self._sliced[key]

    def _slice(self, tensor: Tensor, column: int, window: int | None) -> Tensor:
        if tensor.dim() == _MASK and tensor.shape[2] == self.new:
            start, _ = columns_seen(self.past, window)
            now, kept = columns_seen(self.past + column, window)
            return tensor[:, :, column : column + 1, now - start : now - start + kept + 1]
        if tensor.dim() in (_ROWS, _POSITIONS) and tensor.shape[1] == self.new:
            return tensor[:, column : column + 1]
        raise UnknownArgumentError


def columns_seen(past: int, window: int | None) -> tuple[int, int]:
    """Return the first of the cached columns that a new one attends to, and how many they are."""
    kept = past if window is None else min(past, window - 1)
    return past - kept, kept
