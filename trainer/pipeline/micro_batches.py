"""What an engine reads during a step: this replica's micro-batches."""

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from trainer.activation import Activation, flatten, spec_of
from trainer.data.dataset import Dataset
from trainer.pipeline.source import Source


def split_batch(samples: NDArray[np.int64], sizes: Sequence[int], which: range) -> list[NDArray[np.int64]]:
    """Return the samples of some micro-batches of a global batch.

    Args:
        samples: The global batch's.
        sizes: The size of every micro-batch of the global batch.
        which: The micro-batches wanted.
    """
    ends = np.cumsum(sizes)
    return [samples[ends[i] - sizes[i] : ends[i]] for i in which]


class MicroBatches(Source):
    """Micro-batches of a dataset.

    Args:
        dataset: The samples.
        samples: The samples of each micro-batch.
        read_inputs: Whether this rank holds the first stage.
        read_targets: Whether it holds the last.
    """

    def __init__(
        self,
        dataset: Dataset,
        samples: Sequence[NDArray[np.int64]],
        *,
        read_inputs: bool,
        read_targets: bool,
    ) -> None:
        self._inputs = [dataset.inputs(batch) for batch in samples] if read_inputs else []
        self._targets = [dataset.targets(batch) for batch in samples] if read_targets else []

    def all_targets(self) -> Sequence[Activation]:
        """Return the targets of every micro-batch; none but on the last stage."""
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
