"""Finds image files by class, and opens them."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.errors import UserError

ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_DEEP = ("I", "F")  # modes of Pillow's with more than 8 bits a channel begin so


@dataclass(frozen=True)
class ImageFiles:
    """Image files, sorted by class and name.

    Attributes:
        root: The folder that the names start from.
        classes: The names of the classes: those of the folders, sorted.
        names: The files' paths below the root, as the bytes that the system has; a million take 40 MB.
        labels: The class of every file.
        others: How many files were left out because they are no images.
    """

    root: Path
    classes: tuple[str, ...]
    names: NDArray[np.bytes_]
    labels: NDArray[np.int64]
    others: int

    def path(self, file: int) -> Path:
        """Return the path of a file."""
        return self.root / os.fsdecode(self.names[file])


def find_images(root: Path) -> ImageFiles:
    """Return the image files of a folder that has a folder for each class, at any depth below it.

    Hidden files and folders are skipped; links to files and folders are followed.

    Raises:
        UserError: There is no folder for a class, or no image in one of them.
    """
    try:
        classes = sorted(entry.name for entry in os.scandir(root) if _shown(entry.name) and entry.is_dir())
        found = [_images(root, name) for name in classes]
    except OSError as error:
        raise UserError(f"the folder of images {root} cannot be read: {error.strerror}") from error
    if not classes:
        raise UserError(
            f"{root} has no folders: images are in a folder for each class, such as {root}/cat/1.jpg"
        )
    for name, (names, _) in zip(classes, found, strict=True):
        if not names:
            raise UserError(
                f"the class folder {root / name} has no images ({', '.join(ENDINGS)}): remove it, or fill it"
            )
    labels = np.repeat(np.arange(len(classes)), [len(names) for names, _ in found])
    every = np.array([name for names, _ in found for name in names], dtype=np.bytes_)
    return ImageFiles(root, tuple(classes), every, labels, sum(others for _, others in found))


def _images(root: Path, name: str) -> tuple[list[bytes], int]:
    """Return the sorted paths of a class's images below the root, and the number of other files."""
    names: list[bytes] = []
    others = 0
    seen: set[tuple[int, int]] = set()
    for folder, below, files in os.walk(root / name, followlinks=True, onerror=_raise):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:  # a link that leads back
            below.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        below[:] = filter(_shown, below)
        prefix = os.fsencode(os.path.relpath(folder, root)) + b"/"
        for file in filter(_shown, files):
            if file.lower().endswith(ENDINGS):
                names.append(prefix + os.fsencode(file))
            else:
                others += 1
    return sorted(names), others


def _shown(name: str) -> bool:
    return not name.startswith(".")


def _raise(error: OSError) -> None:
    raise error


def pillow() -> Any:
    """Return `PIL.Image`.

    Raises:
        UserError: Pillow is not installed.
    """
    try:
        from PIL import Image  # noqa: PLC0415  (an extra)
    except ModuleNotFoundError as error:
        raise UserError("data=images needs Pillow: pip install pillow") from error
    return Image


def open_image(path: Path, channels: int) -> Any:
    """Return an image of Pillow's with 8 bits a channel, decoded.

    Args:
        path: The file.
        channels: 1 for shades of grey, 3 for colours.

    Raises:
        UserError: The file cannot be read, is broken, or has more bits a channel.
    """
    image = pillow()
    try:
        with image.open(path) as opened:
            mode = opened.mode
            if not mode.startswith(_DEEP):
                return opened.convert("RGB" if channels > 1 else "L")
    except Exception as error:  # Pillow raises many kinds
        raise UserError(
            f"the image {path} cannot be read: {str(error) or type(error).__name__}: repair or remove it"
        ) from error
    # Pillow would cut all numbers above 255 off.
    raise UserError(f"the image {path} has more than 8 bits a channel (mode {mode}): convert it to 8 bits")
