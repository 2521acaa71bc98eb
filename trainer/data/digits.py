"""Handwritten digits, as scikit-learn brings them along: real images that need no download."""

import hashlib
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from trainer.config.schema import DigitsConfig
from trainer.data.augment import warped
from trainer.data.binary import Labelled
from trainer.data.dataset import Data
from trainer.data.labelled import held_out
from trainer.errors import UserError

CLASSES = 10
_BRIGHTEST = 16.0


def digits(config: DigitsConfig) -> Data:
    """Return float32 images [samples, 1, 8, 8], from 0 to 1, and their digits; of each, a share is held out.

    Raises:
        UserError: scikit-learn is not installed.
    """
    images, classes = read_digits("data=digits")
    apart = held_out(classes, config.validation, config.seed)
    digest = hashlib.sha256(images.tobytes() + classes.tobytes() + apart.tobytes())
    return Data(
        training=Warped(images[~apart], classes[~apart], config),
        validation=Labelled(images[apart], classes[apart]),
        fingerprint=digest.hexdigest(),
        metrics=("accuracy",),
        classes=CLASSES,
    )


def read_digits(choice: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return all images [1797, 1, 8, 8], from 0 to 1, and their digits.

    Args:
        choice: The kind of data as a message names it, such as "data=digits".

    Raises:
        UserError: scikit-learn is not installed.
    """
    try:
        datasets: Any = import_module("sklearn.datasets")
    except ModuleNotFoundError as error:
        raise UserError(f"{choice} needs scikit-learn: pip install scikit-learn") from error
    bunch = datasets.load_digits()
    return (bunch.images / _BRIGHTEST).astype(np.float32)[:, None], bunch.target.astype(np.int64)


class Warped(Labelled):
    """Images and their labels, in two arrays; the images are changed at random.

    Args:
        images: The images [samples, channels, height, width].
        labels: Their labels.
        config: By how much they are changed.
    """

    def __init__(self, images: NDArray[np.float32], labels: NDArray[Any], config: DigitsConfig) -> None:
        super().__init__(images, labels)
        self._by = (config.rotation, config.zoom, config.shift)

    def inputs(self, samples: NDArray[np.int64]) -> Tensor:
        """Return float32 images [samples, channels, height, width]."""
        images = super().inputs(samples)
        return images if self._by == (0, 1, 0) else warped(images, *self._by)
