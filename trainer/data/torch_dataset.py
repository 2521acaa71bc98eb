"""Map-style datasets of torch's (`torch.utils.data.Dataset`) as the trainer's.

A dataset's items are pairs of inputs and targets, or dicts of which one entry, or several, are the targets.
They are read one by one and collated. The rank of the first stage takes the inputs, that of the last stage
the targets; a rank that is both reads every item once.
"""

import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.activation import Activation, flatten
from trainer.data.dataset import Data, as_tensors
from trainer.errors import UserError

_SAMPLED = 16  # items that a fingerprint takes
_MOST_KEPT = 1024  # micro-batches


@dataclass(frozen=True)
class Items:
    """How the items of a dataset become inputs and targets.

    Attributes:
        collate: Makes a batch of a list of items; None: torch's `default_collate`.
        targets: The entries of a dict that are targets; empty where items are pairs.
    """

    collate: Callable[[list[Any]], Any] | None
    targets: Sequence[str]

    def read(self, dataset: Any, samples: NDArray[np.int64]) -> tuple[Activation, Activation]:
        """Return the inputs and the targets of some samples.

        Raises:
            UserError: An item is neither a pair nor a dict that has these entries.
        """
        from torch.utils.data import default_collate  # noqa: PLC0415  (seldom needed)

        batch = (self.collate or default_collate)([dataset[int(sample)] for sample in samples])
        if self.targets:
            missing = [name for name in self.targets if not isinstance(batch, dict) or name not in batch]
            if missing:
                has = ", ".join(map(str, batch)) if isinstance(batch, dict) else type(batch).__name__
                raise UserError(f"data.targets={missing[0]}: the dataset's items have {has}")
            inputs = {name: value for name, value in batch.items() if name not in self.targets}
            taken = [batch[name] for name in self.targets]
            return inputs, taken[0] if len(taken) == 1 else tuple(taken)
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:  # noqa: PLR2004
            raise UserError(
                f"the dataset's items make a batch of type {type(batch).__name__}: they must be pairs of "
                "inputs and targets; of dicts, name the targets with data.targets=[labels]"
            )
        return batch[0], batch[1]


class MapStyle:
    """A map-style dataset, or some of its samples.

    Args:
        dataset: The dataset.
        items: How its items are read.
        chosen: The samples; None: all of them.

    Attributes:
        reach: The number of samples, from the first on, that can be read at random.
    """

    reach = sys.maxsize

    def __init__(self, dataset: Any, items: Items, chosen: NDArray[np.int64] | None = None) -> None:
        self._dataset = dataset
        self._items = items
        self._chosen = chosen
        self._targets: dict[bytes, Activation] = {}  # of inputs that were read, and whose targets were not

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._dataset) if self._chosen is None else len(self._chosen)

    def inputs(self, samples: NDArray[np.int64]) -> Activation:
        """Return the inputs of some samples, collated."""
        inputs, targets = self._read(samples)
        if len(self._targets) >= _MOST_KEPT:
            self._targets.pop(next(iter(self._targets)))
        self._targets[samples.tobytes()] = targets
        return inputs

    def targets(self, samples: NDArray[np.int64]) -> Activation:
        """Return the targets of some samples, collated: those of the inputs that were read last."""
        known = self._targets.pop(samples.tobytes(), None)
        return self._read(samples)[1] if known is None else known

    def _read(self, samples: NDArray[np.int64]) -> tuple[Activation, Activation]:
        return self._items.read(self._dataset, samples if self._chosen is None else self._chosen[samples])


def from_torch(made: Any, items: Items, validation: float) -> Data:
    """Return the data of a map-style dataset, or of a pair: one to train on, one to validate.

    Args:
        made: The dataset or the pair.
        items: How items are read.
        validation: Of one dataset, the share of the samples that is held out, chosen at random.
    """
    if isinstance(made, (tuple, list)):
        training, held_out = (MapStyle(each, items) for each in made)
    else:
        order = np.random.default_rng(0).permutation(len(made))
        count = max(1, round(validation * len(made)))
        training = MapStyle(made, items, np.sort(order[count:]))
        held_out = MapStyle(made, items, np.sort(order[:count]))
    return data_of(training, held_out)


def data_of(training: MapStyle, held_out: MapStyle, notes: tuple[str, ...] = ()) -> Data:
    """Return samples to train on and to validate as data.

    Raises:
        UserError: There are none to train on.
    """
    if not len(training):
        raise UserError("the dataset has no samples to train on")
    return Data(training, held_out, _fingerprint(training, held_out), notes=notes, metrics=("accuracy",))


def is_map_style(made: Any) -> bool:
    """Return whether something has a length and numbered items, and is no container of Python's."""
    plain = isinstance(made, (str, bytes, dict, list, tuple))
    return not plain and hasattr(made, "__getitem__") and hasattr(made, "__len__")


def _fingerprint(*parts: MapStyle) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(str(len(part)).encode())
        last = min(len(part), part.reach) - 1
        places = np.linspace(0, last, min(_SAMPLED, last + 1)).astype(np.int64)
        for place in np.unique(places):
            for tensor in flatten(as_tensors(part._read(place[None])))[0]:
                digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
