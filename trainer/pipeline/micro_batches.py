"""A replica's micro-batches of a dataset, which the engine reads during a step."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from trainer.activation import Activation, flatten, spec_of
from trainer.data.dataset import Dataset, as_tensors
from trainer.errors import add_note
from trainer.pipeline.randomness import Randomness
from trainer.pipeline.source import Source


def split_batch(samples: NDArray[np.int64], sizes: Sequence[int], which: range) -> list[NDArray[np.int64]]:
    """Return the samples of some micro-batches of a global batch.

    Args:
        samples: The samples of the global batch.
        sizes: The size of every micro-batch of the global batch.
        which: The indices of the micro-batches to return.
    """
    ends = np.cumsum(sizes)
    return [samples[ends[i] - sizes[i] : ends[i]] for i in which]


@dataclass(frozen=True)
class Reading:
    """What is read of a dataset at a time.

    Attributes:
        samples: The samples of each micro-batch.
        step: The optimizer step; None in a validation.
        first_micro_batch: The index of the first micro-batch within the global batch.
        inputs: Whether to read inputs: this rank holds the first stage.
        targets: Whether to read targets: this rank holds the last stage.
    """

    samples: Sequence[NDArray[np.int64]]
    step: int | None
    first_micro_batch: int
    inputs: bool
    targets: bool


def read(
    dataset: Dataset, reading: Reading, seed: int, micro_batches: Sequence[int] | None = None
) -> tuple[list[Activation], list[Activation]]:
    """Return the inputs and the targets of micro-batches; empty lists of what is not asked for.

    Args:
        dataset: The samples.
        reading: Which of them.
        seed: The run's.
        micro_batches: The micro-batches, as indices of `reading.samples`; None: all of them.
    """
    randomness = Randomness(seed)
    randomness.step, randomness.first_micro_batch = reading.step, reading.first_micro_batch
    parts: list[list[Activation]] = []
    for wanted, of in ((reading.inputs, dataset.inputs), (reading.targets, dataset.targets)):
        parts.append(read_samples(of, reading.samples, randomness, micro_batches) if wanted else [])
    return parts[0], parts[1]


class Reads(Protocol):
    """What reads; see `trainer.pipeline.readers`."""

    def read(self, dataset: Dataset, reading: Reading) -> tuple[list[Activation], list[Activation]]:
        """Return the inputs and the targets of micro-batches."""


class MicroBatches(Source):
    """Micro-batches of a dataset, all read at once: the targets are counted before the first forward.

    Args:
        dataset: The samples.
        samples: The samples of each micro-batch.
        randomness: Seeds what reading draws from.
        read_inputs: Whether to read inputs: this rank holds the first stage.
        read_targets: Whether to read targets: this rank holds the last stage.
        reader: What reads them; None: this process.
    """

    def __init__(
        self,
        dataset: Dataset,
        samples: Sequence[NDArray[np.int64]],
        randomness: Randomness,
        *,
        read_inputs: bool,
        read_targets: bool,
        reader: Reads | None = None,
    ) -> None:
        reading = Reading(samples, randomness.step, randomness.first_micro_batch, read_inputs, read_targets)
        if reader is None:
            self._inputs, self._targets = read(dataset, reading, randomness.run_seed)
        else:
            self._inputs, self._targets = reader.read(dataset, reading)

    def all_targets(self) -> Sequence[Activation]:
        """Return the targets of every micro-batch; empty on ranks without the last stage."""
        return self._targets

    def signatures(self) -> Sequence[Hashable]:
        """Return the structure of every micro-batch's inputs."""
        return [spec_of(*flatten(inputs)) for inputs in self._inputs]

    def inputs(self, micro_batch: int) -> Activation:
        """Return a micro-batch's inputs."""
        return self._inputs[micro_batch]

    def targets(self, micro_batch: int) -> Activation:
        """Return a micro-batch's targets."""
        return self._targets[micro_batch]


def read_samples(
    read: Callable[[NDArray[np.int64]], Activation],
    samples: Sequence[NDArray[np.int64]],
    randomness: Randomness,
    micro_batches: Sequence[int] | None = None,
) -> list[Activation]:
    """Return the inputs, or the targets, of micro-batches, each read under a seed of its own.

    Args:
        read: `Dataset.inputs` or `Dataset.targets`.
        samples: The samples of each micro-batch.
        randomness: Seeds.
        micro_batches: The micro-batches, as indices of `samples`; None: all of them.
    """
    parts = []
    for micro_batch in range(len(samples)) if micro_batches is None else micro_batches:
        batch = samples[micro_batch]
        randomness.seed_data(micro_batch)
        try:
            parts.append(as_tensors(read(batch)))
        except Exception as error:
            name = getattr(read, "__name__", "samples")
            add_note(error, f"while reading the {name} of samples {_some(batch)}")
            raise
    return parts


def _some(batch: NDArray[np.int64]) -> str:
    shown = ", ".join(map(str, batch[:8].tolist()))
    return f"{shown}, ... ({len(batch)} of them)" if len(batch) > 8 else shown  # noqa: PLR2004
