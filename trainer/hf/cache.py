"""The keys and values of a stage's blocks, in the caches of transformers.

A model makes masks and positions from the length of its cache. So every stage has a cache of all blocks, of
which those elsewhere know only their length.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from trainer.hf.ahead import Ahead, columns_seen
from trainer.models.decoding import StageCache, joined

KINDS = (DynamicLayer, DynamicSlidingWindowLayer)  # other kinds keep other things


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
        first, kept = columns_seen(self._length(), self._window)
        return kept + query_length, first

    def update(self, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """Refuse: the layer's block is not here."""
        raise RuntimeError("a block of another stage has asked for its keys and values")


class HFCache:
    """The keys and values of a stage's layers for one group.

    Args:
        config: The model's configuration.
        mine: The numbers of the stage's layers.

    Attributes:
        columns: The number of columns that are cached.
        cache: What the model takes.
        ahead: The arguments of the next columns, once they are known.
    """

    def __init__(self, config: Any, mine: range) -> None:
        self.columns = 0
        self.ahead: Ahead | None = None
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
        self.ahead = None

    @property
    def windows(self) -> list[int | None]:
        """Return the sliding windows of the stage's layers."""
        return [getattr(self.cache.layers[number], "sliding_window", None) for number in self._mine]

    def tensors(self) -> list[Tensor]:
        """Return the keys and values."""
        layers = [layer for layer in self.cache.layers if getattr(layer, "keys", None) is not None]
        return [tensor for layer in layers for tensor in (layer.keys, layer.values)]
