"""CIFAR-10 from the files of its page (https://www.cs.toronto.edu/~kriz/cifar.html), in either version.

    cifar-10-batches-py/   data_batch_1 ... data_batch_5, test_batch    dicts, pickled by Python 2
    cifar-10-batches-bin/  the same, with .bin                          a byte a class, 3,072 an image

A pickle may run any code. So these are read by an unpickler that knows arrays and nothing else.
"""

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.config.schema import Cifar10Config
from trainer.data.augment import flipped, shifted
from trainer.data.binary import Labelled
from trainer.data.dataset import Data
from trainer.data.labelled import Scaling
from trainer.errors import UserError

CLASSES = 10
_SHAPE = (3, 32, 32)
_BYTES = 3 * 32 * 32
_FOLDERS = ("cifar-10-batches-py", "cifar-10-batches-bin")
_TRAINING = tuple(f"data_batch_{number}" for number in range(1, 6))
_TEST = ("test_batch",)
_COUNTS = (50_000, 10_000)

Batch = tuple[NDArray[np.uint8], NDArray[np.int64]]  # images [samples, 3072], and their classes


def load(config: Cifar10Config) -> Data:
    """Return float32 images [samples, 3, 32, 32] and their classes; the test batch is for validation.

    Raises:
        UserError: A file is not there, or is not what it should be.
    """
    folder, ending = _find(config.path)
    batches = [_read([folder / f"{name}{ending}" for name in names]) for names in (_TRAINING, _TEST)]
    digest = hashlib.sha256()
    for images, labels in batches:
        digest.update(images.tobytes() + labels.tobytes())
    (training, test), scaling = batches, Scaling(config.mean, config.std, _SHAPE[0])
    counts = tuple(len(labels) for _, labels in batches)
    notes = [f"{folder} has {counts[0]} + {counts[1]} images: CIFAR-10 has {_COUNTS[0]} + {_COUNTS[1]}"]
    return Data(
        training=Images(training, scaling, config.padding, flip=config.flip),
        validation=Images(test, scaling),
        fingerprint=digest.hexdigest(),
        notes=() if counts == _COUNTS else tuple(notes),
        metrics=("accuracy",),
        classes=CLASSES,
    )


def example(config: Cifar10Config, _vocabulary: int | None) -> Data:
    """Return a black image."""
    Scaling(config.mean, config.std, _SHAPE[0])
    black = Labelled(np.zeros((1, *_SHAPE), dtype=np.float32), np.zeros(1, dtype=np.int64))
    return Data(black, black, "example", classes=CLASSES)


class Images:
    """Images and their classes.

    Args:
        batch: The images and the classes.
        scaling: Turns pixels into what a model takes.
        padding: The largest random shift, in pixels.
        flip: Whether images are mirrored at random.
    """

    def __init__(self, batch: Batch, scaling: Scaling, padding: int = 0, *, flip: bool = False) -> None:
        self._images, self._labels = batch
        self._scaling = scaling
        self._padding = padding
        self._flip = flip

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._labels)

    def inputs(self, samples: NDArray[np.int64]) -> Tensor:
        """Return float32 images [samples, 3, 32, 32]."""
        pixels = torch.from_numpy(self._images[samples]).view(-1, *_SHAPE)
        if self._padding:
            pixels = shifted(pixels, self._padding)
        return self._scaling(flipped(pixels) if self._flip else pixels)

    def targets(self, samples: NDArray[np.int64]) -> Tensor:
        """Return int64 classes [samples]."""
        return torch.from_numpy(self._labels[samples])


def _find(path: str) -> tuple[Path, str]:
    """Return the folder of the files, and what their names end in."""
    root = Path(path).expanduser()
    for folder in (root, *(root / name for name in _FOLDERS)):
        for ending in ("", ".bin"):
            if (folder / f"{_TEST[0]}{ending}").is_file():
                return folder, ending
    raise UserError(
        f"data.path={path} (from {Path.cwd()}) neither is nor has {' or '.join(_FOLDERS)} with test_batch: "
        "unpack cifar-10-python.tar.gz or cifar-10-binary.tar.gz of https://www.cs.toronto.edu/~kriz/cifar.html"
    )


def _read(paths: list[Path]) -> Batch:
    """Return the images of some files, one after another."""
    batches = []
    for path in paths:
        try:
            images, labels = (_binary if path.suffix else _pickled)(path)
        except OSError as error:
            raise UserError(f"{path} of CIFAR-10 cannot be read: {error.strerror}") from error
        if labels.size and not 0 <= labels.min() <= labels.max() < CLASSES:
            raise _broken(path, f"it has a class {labels.max()}, and these are 0 to {CLASSES - 1}")
        batches.append((images, labels))
    images, labels = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
    return images, labels


def _binary(path: Path) -> Batch:
    size = path.stat().st_size
    if not size or size % (1 + _BYTES):
        raise _broken(path, f"it has {size} bytes, which is no multiple of {1 + _BYTES} greater than 0")
    rows = np.fromfile(path, dtype=np.uint8).reshape(-1, 1 + _BYTES)
    return rows[:, 1:], rows[:, 0].astype(np.int64)


def _pickled(path: Path) -> Batch:
    with path.open("rb") as stream:
        try:
            content = _Unpickler(stream, encoding="bytes").load()
        except OSError:
            raise
        except Exception as error:  # a broken pickle may raise anything
            raise _broken(path, str(error) or type(error).__name__) from error
    images, labels = (
        content.get(name) if isinstance(content, dict) else None for name in (b"data", b"labels")
    )
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != (_BYTES,):
        raise _broken(path, f"its entry 'data' is no array of bytes [images, {_BYTES}]")
    if not isinstance(labels, list) or len(labels) != len(images) or {type(each) for each in labels} - {int}:
        raise _broken(path, f"its entry 'labels' is no list of {len(images)} whole numbers")
    return images, np.array(labels, dtype=np.int64)


def _broken(path: Path, why: str) -> UserError:
    return UserError(f"{path} is not a file of CIFAR-10, or is damaged: {why}; unpack it again")


class _Unpickler(pickle.Unpickler):
    """Knows arrays, and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what an array is made of."""
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _empty
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no array")


def _empty(_kind: type, _shape: tuple[int, ...], _type: bytes) -> NDArray[Any]:
    """Return an array for the pickle to fill."""
    made: NDArray[Any] = np.ndarray((0,), dtype=np.uint8)
    return made
