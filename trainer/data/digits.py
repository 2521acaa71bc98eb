"""Handwritten digits, as scikit-learn brings them along: real images that need no download."""

import hashlib
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.config.schema import DigitsConfig
from trainer.data.binary import Labelled
from trainer.data.dataset import Data
from trainer.errors import UserError

_CLASSES = 10
_BRIGHTEST = 16.0


def digits(config: DigitsConfig) -> Data:
    """Return float32 images [samples, 1, 8, 8], from 0 to 1, and their digits; of each, a share is held out.

    Raises:
        UserError: scikit-learn is not installed.
    """
    try:
        datasets: Any = import_module("sklearn.datasets")
    except ModuleNotFoundError as error:
        raise UserError("data=digits needs scikit-learn: pip install scikit-learn") from error
    bunch = datasets.load_digits()
    images = (bunch.images / _BRIGHTEST).astype(np.float32)[:, None]
    classes = bunch.target.astype(np.int64)
    held_out = _held_out(classes, config)
    digest = hashlib.sha256(images.tobytes() + classes.tobytes() + held_out.tobytes())
    return Data(
        training=Labelled(images[~held_out], classes[~held_out]),
        validation=Labelled(images[held_out], classes[held_out]),
        fingerprint=digest.hexdigest(),
        metrics=("accuracy",),
    )


def _held_out(classes: NDArray[np.int64], config: DigitsConfig) -> NDArray[np.bool_]:
    """Return which images are held out, chosen at random within each class."""
    generator = np.random.default_rng(config.seed)
    held_out = np.zeros(len(classes), dtype=np.bool_)
    for digit in range(_CLASSES):
        (mine,) = np.nonzero(classes == digit)
        held_out[generator.permutation(mine)[: round(config.validation * len(mine))]] = True
    return held_out
