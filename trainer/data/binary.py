"""Random features with a label of 0 or 1: the data of the SimpleNet example."""

import hashlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.config.schema import BinaryConfig
from trainer.data.dataset import Data

_NOISE = 0.2  # relative to a signal of 1; about 6 % of the labels, near the boundary, are wrong


class Labelled:
    """Features and their labels, in two arrays."""

    def __init__(self, features: NDArray[np.float32], labels: NDArray[Any]) -> None:
        self._features = features
        self._labels = labels

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._labels)

    def inputs(self, samples: NDArray[np.int64]) -> Tensor:
        """Return float32 features [samples, ...]."""
        return torch.from_numpy(self._features[samples])

    def targets(self, samples: NDArray[np.int64]) -> Tensor:
        """Return labels [samples]."""
        return torch.from_numpy(self._labels[samples])


def binary(config: BinaryConfig) -> Data:
    """Return normally distributed features [samples, features], labelled by the side of a random plane.

    The plane goes through the origin, so the two labels are about equally frequent. A little noise prevents
    a model from learning the labels without error.
    """
    generator = np.random.default_rng(config.seed)
    count = config.samples + config.validation
    normal = generator.standard_normal(config.features)
    features = generator.standard_normal((count, config.features), dtype=np.float32)
    noise = _NOISE * generator.standard_normal(count)
    distance = (features * normal).sum(axis=1) / np.linalg.norm(normal)
    labels = (distance + noise > 0).astype(np.float32)
    cut = config.samples
    return Data(
        training=Labelled(features[:cut], labels[:cut]),
        validation=Labelled(features[cut:], labels[cut:]),
        fingerprint=_digest(np.array([cut]), features, labels),
        metrics=("accuracy",),
    )


def _digest(*arrays: NDArray[Any]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(array.tobytes())
    return digest.hexdigest()
