"""Image files in a folder for each class, as ImageNet is kept.

    train/tench/n01440764_1.JPEG   val/tench/...        or   tench/n01440764_1.JPEG   and a share is held out

The first stage opens images, one micro-batch at a time; labels follow from the folders' names.
"""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.config.schema import ImagesConfig
from trainer.data.augment import Parts, flipped, shifted
from trainer.data.binary import Labelled
from trainer.data.dataset import Data
from trainer.data.image_files import ImageFiles, find_images, open_image, pillow
from trainer.data.labelled import Scaling, held_out
from trainer.errors import UserError

_VALIDATION = ("val", "validation")
_RESIZED = 8 / 7  # 256 for 224
_MANY = 100  # classes, from which on the five likeliest are of interest
_SAMPLED = 16  # files whose bytes the fingerprint takes


def load(config: ImagesConfig) -> Data:
    """Return float32 images [samples, channels, size, size] and their classes.

    Raises:
        UserError: The folder is not there, or has other folders than expected; Pillow is not installed.
    """
    pillow()
    root = Path(config.path).expanduser()
    if not root.is_dir():
        raise UserError(f"data.path={config.path} is no folder (from {Path.cwd()}): give a folder of images")
    training, validation, notes = _parts(config, root)
    number = len(training.files.classes)
    if config.classes not in (None, number):
        raise UserError(
            f"data.classes={config.classes}, but {training.files.root} has {number} class folders"
        )
    return Data(
        training,
        validation,
        _fingerprint(training, validation),
        notes=notes,
        metrics=("accuracy", "top5") if number >= _MANY else ("accuracy",),
        classes=number,
    )


def example(config: ImagesConfig, _vocabulary: int | None) -> Data:
    """Return black images; without `data.classes` the files are looked at for their number."""
    if config.classes is None:
        return load(config)
    _scaling(config)
    images = np.zeros((1, config.channels, config.size, config.size), dtype=np.float32)
    black = Labelled(images, np.zeros(1, dtype=np.int64))
    return Data(black, black, "example", classes=config.classes)


def _parts(config: ImagesConfig, root: Path) -> tuple["Images", "Images", tuple[str, ...]]:
    """Return the images to train on, those held out, and what a person should know."""
    if (root / "train").is_dir():
        held = next((root / name for name in _VALIDATION if (root / name).is_dir()), None)
        if held is None:
            raise UserError(
                f"data.path={config.path} has a folder train, but none named val or validation; to hold out "
                f"a share of train, give data.path={Path(config.path) / 'train'}"
            )
        found, others = find_images(root / "train"), find_images(held)
        _same_classes(found, others)
        chosen, apart = (np.arange(len(files.labels)) for files in (found, others))
        ignored = found.others + others.others
    else:
        found = others = find_images(root)
        which = held_out(found.labels, config.validation, config.seed)
        chosen, apart = np.flatnonzero(~which), np.flatnonzero(which)
        ignored = found.others
    training = Images(config, found, chosen, augmented=True)
    validation = Images(config, others, apart)
    notes = [f"{ignored} files below {root} are no images, and were left out"] if ignored else []
    if not len(validation):
        notes.append(f"no image is held out: every class has too few for data.validation={config.validation}")
    return training, validation, tuple(notes)


def _same_classes(training: ImageFiles, validation: ImageFiles) -> None:
    """Raise a UserError unless the two folders have the same classes."""
    for files, others in ((training, validation), (validation, training)):
        if alone := sorted(set(files.classes) - set(others.classes)):
            raise UserError(
                f"{files.root} has classes that {others.root} has not: {', '.join(alone[:3])}"
                f"{', ...' if alone[3:] else ''}; both need the same class folders"
            )


def _fingerprint(*parts: "Images") -> str:
    """Return a digest of all names and of some files' bytes.

    Raises:
        UserError: Such a file cannot be read.
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(os.fsencode("/".join(part.files.classes)))
        digest.update(part.chosen.tobytes() + part.files.names.tobytes())
        for place in np.unique(np.linspace(0, len(part) - 1, min(_SAMPLED, len(part))).astype(np.int64)):
            path = part.path(int(place))
            try:
                digest.update(path.read_bytes())
            except OSError as error:
                raise UserError(f"the image {path} cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def _scaling(config: ImagesConfig) -> Scaling:
    return Scaling(config.mean, config.std, config.channels)


class Images:
    """Some of the images of a folder.

    Args:
        config: How they are resized, cropped and scaled.
        files: The files.
        chosen: Which of them.
        augmented: Whether images are changed at random.

    Attributes:
        files: The files.
        chosen: Which of them.
    """

    def __init__(
        self, config: ImagesConfig, files: ImageFiles, chosen: NDArray[np.int64], *, augmented: bool = False
    ) -> None:
        self.files = files
        self.chosen = chosen
        self._augmented = augmented
        self._config = config
        self._resize = config.resize or round(_RESIZED * config.size)
        self._scaling = _scaling(config)
        if self._resize < config.size:
            raise UserError(f"data.resize={config.resize} must not be less than data.size={config.size}")

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.chosen)

    def path(self, sample: int) -> Path:
        """Return the file of a sample."""
        return self.files.path(int(self.chosen[sample]))

    def targets(self, samples: NDArray[np.int64]) -> Tensor:
        """Return int64 classes [samples]; opens no file."""
        return torch.from_numpy(self.files.labels[self.chosen[samples]])

    def inputs(self, samples: NDArray[np.int64]) -> Tensor:
        """Return float32 images [samples, channels, size, size].

        Raises:
            UserError: A file cannot be read or is broken.
        """
        config = self._config
        parts = Parts(len(samples), config.smallest) if self._augmented and config.crop == "resized" else None
        pixels = torch.from_numpy(np.stack([self._read(*each, parts) for each in enumerate(samples)]))
        if self._augmented and config.crop == "padded":
            pixels = shifted(pixels, config.padding)
        if self._augmented and config.flip:
            pixels = flipped(pixels)
        return self._scaling(pixels)

    def _read(self, place: int, sample: int, parts: Parts | None) -> NDArray[np.uint8]:
        """Return the pixels [channels, size, size] of a sample, the `place`-th of its micro-batch."""
        config, image = self._config, open_image(self.path(sample), self._config.channels)
        if parts is None:
            box = _middle(image.width, image.height, config.size / self._resize)
        else:
            box = parts.box(place, image.width, image.height)
        resized = image.resize((config.size, config.size), pillow().Resampling.BILINEAR, box=box)
        pixels: Any = np.asarray(resized).reshape(config.size, config.size, config.channels)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _middle(width: int, height: int, share: float) -> tuple[float, float, float, float]:
    """Return the square in the middle whose side is a share of the shorter side: left, top, right, bottom.

    To resize it is to resize the whole image and then crop it, without rounding in between.
    """
    side = share * min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side
