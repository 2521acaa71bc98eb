"""A replica's micro-batches of a dataset, which the engine reads during a step."""

from collections.abc import Callable, Hashable, Sequence

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


class MicroBatches(Source):
    """Micro-batches of a dataset, all read at once: the targets are counted before the first forward.

    Args:
        dataset: The samples.
        samples: The samples of each micro-batch.
        randomness: Seeds what reading draws from.
        read_inputs: Whether to read inputs: this rank holds the first stage.
        read_targets: Whether to read targets: this rank holds the last stage.
    """

    def __init__(
        self,
        dataset: Dataset,
        samples: Sequence[NDArray[np.int64]],
        randomness: Randomness,
        *,
        read_inputs: bool,
        read_targets: bool,
    ) -> None:
        self._inputs = read_samples(dataset.inputs, samples, randomness) if read_inputs else []
        self._targets = read_samples(dataset.targets, samples, randomness) if read_targets else []

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
) -> list[Activation]:
    """Return the inputs, or the targets, of micro-batches, each read under a seed of its own.

    Args:
        read: `Dataset.inputs` or `Dataset.targets`.
        samples: The samples of each micro-batch.
        randomness: Seeds.
    """
    parts = []
    for micro_batch, batch in enumerate(samples):
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
