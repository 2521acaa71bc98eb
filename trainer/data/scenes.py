"""Scenes of handwritten digits, for models that give every pixel a class: real writing, in made pictures.

A digit of scikit-learn's is doubled to 16 x 16 and put somewhere; later digits hide parts of earlier ones,
and noise covers all. The class of a pixel is 0 for the background, or 1 + the digit whose ink it shows. Ink
alone tells the background apart; which digit it is takes a look at the whole of it.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

from trainer.config.schema import ScenesConfig
from trainer.data.binary import Labelled
from trainer.data.dataset import Data
from trainer.data.digits import CLASSES, read_digits
from trainer.data.labelled import held_out
from trainer.errors import UserError

_ENLARGED = 2
_INK = 0.3  # from this brightness on
_SHARE = 0.2  # of the digits, for the scenes that are held out


def scenes(config: ScenesConfig) -> Data:
    """Return float32 scenes [samples, 1, size, size], and int64 classes [samples, size, size].

    Raises:
        UserError: scikit-learn is not installed, or a scene is smaller than a digit.
    """
    images, classes = read_digits("data=scenes")
    images = images[:, 0].repeat(_ENLARGED, 1).repeat(_ENLARGED, 2)
    if config.size < images.shape[-1]:
        raise UserError(f"data.size={config.size} must be at least a digit's {images.shape[-1]} pixels")
    apart = held_out(classes, _SHARE, config.seed)
    parts = []
    for number, (count, which) in enumerate(((config.samples, ~apart), (config.validation, apart))):
        generator = np.random.default_rng([config.seed, number])
        parts.append(_compose(config, count, images[which], classes[which], generator))
    digest = hashlib.sha256(b"".join(array.tobytes() for part in parts for array in part))
    training, validation = (Labelled(*part) for part in parts)
    return Data(training, validation, digest.hexdigest(), metrics=("accuracy", "iou"), classes=1 + CLASSES)


def _compose(
    config: ScenesConfig,
    count: int,
    images: NDArray[np.float32],
    classes: NDArray[np.int64],
    generator: np.random.Generator,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return a number of scenes, and the classes of their pixels."""
    side = images.shape[-1]
    pictures = np.zeros((count, 1, config.size, config.size), dtype=np.float32)
    labels = np.zeros((count, config.size, config.size), dtype=np.int64)
    chosen = generator.integers(len(images), size=(count, config.digits))
    places = generator.integers(config.size - side + 1, size=(count, config.digits, 2))
    for scene in range(count):
        for number, (top, left) in zip(chosen[scene], places[scene], strict=True):
            here = np.s_[top : top + side, left : left + side]
            ink = images[number] >= _INK
            pictures[scene, 0][here][ink] = images[number][ink]
            labels[scene][here][ink] = 1 + classes[number]
    pictures += generator.normal(0, config.noise, pictures.shape).astype(np.float32)
    return pictures, labels
