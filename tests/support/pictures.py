"""Images for tests: files, and data without content."""

from pathlib import Path

import numpy as np
from PIL import Image

from trainer.data.binary import Labelled
from trainer.data.dataset import Data


def write(path: Path, seed: int, size: tuple[int, int] = (20, 16), mode: str = "RGB") -> None:
    """Write an image of smooth noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).convert(mode).save(path)


def folder(root: Path, classes: tuple[str, ...] = ("cat", "dog"), each: int = 4) -> Path:
    for label, name in enumerate(classes):
        for number in range(each):
            write(root / name / f"{number}.png", 10 * label + number)
    return root


def images(size: int, channels: int = 3, classes: int | None = 1000) -> Data:
    part = Labelled(np.zeros((2, channels, size, size), dtype=np.float32), np.zeros(2, dtype=np.int64))
    return Data(part, part, "images", classes=classes)
