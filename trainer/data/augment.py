"""What changes training images at random.

All draws are from torch's global generator, which the engine seeds for every micro-batch of every step. So
they are the same in every layout, and after resuming.
"""

import math

import torch
from torch import Tensor

_ATTEMPTS = 10
_RATIOS = (3 / 4, 4 / 3)  # of width to height


def flipped(images: Tensor) -> Tensor:
    """Return images [batch, channels, height, width], every second one on average mirrored."""
    mirror = torch.rand(len(images)) < 1 / 2
    return torch.where(mirror[:, None, None, None], images.flip(-1), images)


def shifted(images: Tensor, padding: int) -> Tensor:
    """Return images [batch, channels, height, width], each cropped from itself with a black margin.

    Args:
        images: The images.
        padding: The margin's width in pixels, and the largest shift on both axes.
    """
    batch, _, height, width = images.shape
    padded = torch.nn.functional.pad(images, [padding] * 4)
    tops, lefts = torch.randint(2 * padding + 1, (2, batch))
    rows = tops[:, None, None] + torch.arange(height)[:, None]
    columns = lefts[:, None, None] + torch.arange(width)
    numbers = torch.arange(batch)[:, None, None]
    return padded.movedim(1, -1)[numbers, rows, columns].movedim(-1, 1).contiguous()


def warped(images: Tensor, rotation: float, zoom: float, shift: float) -> Tensor:
    """Return float images [batch, channels, height, width], each turned, enlarged or reduced, and shifted.

    Pixels are interpolated; what comes into view is black.

    Args:
        images: The images.
        rotation: The largest angle, in degrees, either way.
        zoom: The largest factor; the least is its inverse.
        shift: The largest shift on both axes, in pixels.
    """
    batch, _, height, width = images.shape
    angles, zooms, across, down = 2 * torch.rand(4, batch) - 1
    factors = (-math.log(zoom) * zooms).exp()  # from places in the result to places in the image
    cosines = factors * (math.radians(rotation) * angles).cos()
    sines = factors * (math.radians(rotation) * angles).sin()
    # In units of half an image's side, as affine_grid takes them.
    rows = (
        torch.stack((cosines, -sines * height / width, 2 * shift / width * across), 1),
        torch.stack((sines * width / height, cosines, 2 * shift / height * down), 1),
    )
    grid = torch.nn.functional.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return torch.nn.functional.grid_sample(images, grid, align_corners=False)


class Parts:
    """Random parts of images of any size, as Inception's crops (Szegedy et al. 2014, arXiv:1409.4842).

    Their share of the area is uniform, and so is the logarithm of the ratio of their sides, from 3/4 to 4/3.
    All draws are made at once, before an image is opened: so they do not depend on the images' sizes.

    Args:
        images: The number of images.
        smallest: The smallest share of the area.
    """

    def __init__(self, images: int, smallest: float) -> None:
        shares, ratios = torch.rand(2, images, _ATTEMPTS, dtype=torch.float64)
        self._shares = smallest + (1 - smallest) * shares
        low, high = map(math.log, _RATIOS)
        self._ratios = (low + (high - low) * ratios).exp()
        self._places = torch.rand(2, images, dtype=torch.float64)

    def box(self, image: int, width: int, height: int) -> tuple[int, int, int, int]:
        """Return the part of an image of this size: left, top, right, bottom, in pixels.

        Where no attempt fits into a long image, it is the largest part in the middle of an allowed ratio.
        """
        for share, ratio in zip(self._shares[image].tolist(), self._ratios[image].tolist(), strict=True):
            across = round(math.sqrt(share * width * height * ratio))
            down = round(math.sqrt(share * width * height / ratio))
            if 0 < across <= width and 0 < down <= height:
                horizontal, vertical = self._places[:, image].tolist()
                left, top = int(horizontal * (width - across + 1)), int(vertical * (height - down + 1))
                return left, top, left + across, top + down
        across = max(1, min(width, round(height * _RATIOS[1])))
        down = max(1, min(height, round(width / _RATIOS[0])))
        left, top = (width - across) // 2, (height - down) // 2
        return left, top, left + across, top + down
