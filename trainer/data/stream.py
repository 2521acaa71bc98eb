"""Iterable datasets of torch's (`torch.utils.data.IterableDataset`) as numbered samples.

Sample n is the n-th item of the stream, and training takes samples in that order. Every rank that reads
iterates the same stream and takes the items of its own micro-batches. So micro-batch k of step s has the same
samples in every layout. Before every item the global generators are seeded by its number, so what the stream
draws does not depend on what was skipped.

A run that resumes needs a position. A dataset that has one offers it:

    def start(self, position: int) -> Iterator:
        '''Return the items from number `position` on.'''

Other datasets are iterated up to there. A stream with a length begins again at its end, after
`set_epoch(number)` if there is such a method.
"""

import logging
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset

from trainer.data.dataset import Data
from trainer.data.order import SampleOrder
from trainer.data.torch_dataset import Items, MapStyle, data_of, is_map_style
from trainer.errors import TrainingError, UserError
from trainer.seeds import derive, seed_generators

_FAR = 1000  # items, from which on a position is asked for; micro-batches of other replicas are skipped
_MANY = 10_000  # items that are skipped: worth a line in the log
_log = logging.getLogger(__name__)


class Stream(MapStyle):
    """The samples of an iterable dataset.

    Args:
        dataset: The dataset.
        items: How its items are read.
    """

    sequential = True  # several workers would all iterate the same
    reach = 4

    def __init__(self, dataset: Any, items: Items) -> None:
        super().__init__(_Numbered(dataset), items)
        self.seeks = hasattr(dataset, "start")
        self.endless = length_of_stream(dataset) is None

    def __len__(self) -> int:
        """Return the number of samples of a pass; of a stream without a length, more than there can be."""
        return sys.maxsize if self.endless else super().__len__()

    def order(self, seed: int) -> SampleOrder:
        """Return the order of the stream itself."""
        return _AsTheyCome()


class _AsTheyCome:
    def samples(self, position: int, count: int) -> NDArray[np.int64]:
        return np.arange(position, position + count, dtype=np.int64)


class _Numbered:
    """The items of a stream by number; they are read forwards, and from the start to go back."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self._length = length_of_stream(dataset)
        self._seeks = hasattr(dataset, "start")
        self._seed = torch.initial_seed()  # the run has seeded the generators, alike on every rank
        self._iterator: Iterator[Any] = iter(())
        self._next = 0  # the number of the iterator's next item
        self._pass = -1  # none yet

    def __len__(self) -> int:
        assert self._length is not None
        return self._length

    def __getitem__(self, number: int) -> Any:
        far = self._seeks and number - self._next >= _FAR
        if number < self._next or far or self._pass != self._place(number)[0]:
            self._seek(number)
        if number - self._next >= _MANY:
            _log.warning("skipping %d items of the stream, which has no method start", number - self._next)
        while self._next < number:
            self._advance()
        return self._advance()

    def _place(self, number: int) -> tuple[int, int]:
        """Return an item's pass, and its number within that."""
        return divmod(number, self._length) if self._length else (0, number)

    def _seek(self, number: int) -> None:
        """Begin at an item, or at the start of its pass."""
        self._pass, position = self._place(number)
        self._seed_for(number - position)
        if self._length and hasattr(self._dataset, "set_epoch"):
            self._dataset.set_epoch(self._pass)
        if self._seeks:
            self._iterator, self._next = iter(self._dataset.start(position)), number
        else:
            self._iterator, self._next = iter(self._dataset), number - position

    def _advance(self) -> Any:
        self._seed_for(self._next)
        try:
            item = next(self._iterator)
        except StopIteration:
            told = "" if self._length is None else f", though its length is {self._length}"
            raise TrainingError(
                f"the stream of data.target ended after {self._next} items{told}: let it begin again by "
                "itself, give it a length (__len__), or train for fewer steps"
            ) from None
        self._next += 1
        return item

    def _seed_for(self, number: int) -> None:
        seed_generators(derive(self._seed, "stream", number))


def length_of_stream(dataset: Any) -> int | None:
    """Return the length of an iterable dataset; None if it does not know it."""
    try:
        return len(dataset)
    except (TypeError, NotImplementedError):
        return None


def is_stream(made: Any) -> bool:
    """Return whether something can be iterated again and again, and is no container or map-style dataset."""
    if isinstance(made, IterableDataset):
        return True
    plain = isinstance(made, (str, bytes, dict, list, tuple, set, frozenset))
    return (
        not plain and hasattr(made, "__iter__") and not hasattr(made, "__next__") and not is_map_style(made)
    )


def from_stream(made: Sequence[Any], items: Items) -> Data:
    """Return the data of a stream to train on, and of another dataset to validate, if there is one.

    Raises:
        UserError: The one to validate has no length.
    """
    training = Stream(made[0], items) if is_stream(made[0]) else MapStyle(made[0], items)
    held_out = MapStyle((), items)
    if len(made) > 1:
        if is_stream(made[1]) and length_of_stream(made[1]) is None:
            raise UserError(
                "data.target returned a stream without a length to validate: give it a __len__, or return "
                "the stream to train on alone, and there is no validation"
            )
        held_out = Stream(made[1], items) if is_stream(made[1]) else MapStyle(made[1], items)
    notes: tuple[str, ...] = ()
    if isinstance(training, Stream) and not training.seeks:
        notes = ("the stream has no method start(position): a run that resumes iterates to where it was",)
    return data_of(training, held_out, notes)
