"""What kinds of data with labels share."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.errors import UserError


def held_out(labels: NDArray[np.int64], share: float, seed: int) -> NDArray[np.bool_]:
    """Return which samples are held out, chosen at random within each class, of which at least one stays.

    Args:
        labels: The class of every sample.
        share: The share of each class that is held out.
        seed: Of the choice.
    """
    generator = np.random.default_rng(seed)
    chosen = np.zeros(len(labels), dtype=np.bool_)
    for label in np.unique(labels):
        (mine,) = np.nonzero(labels == label)
        chosen[generator.permutation(mine)[: min(round(share * len(mine)), len(mine) - 1)]] = True
    return chosen


class Scaling:
    """Pixels as a model takes them: float32, with a mean of 0 and a standard deviation of 1.

    Args:
        mean: Of each channel, from 0 to 1.
        std: Of each channel.
        channels: How many there are.

    Raises:
        UserError: There is not one number for each channel.
    """

    def __init__(self, mean: list[float], std: list[float], channels: int) -> None:
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != channels:
                raise UserError(
                    f"data.{name}={values} must have one number for each of the {channels} channel(s)"
                )
        self._mean, self._std = (255 * torch.tensor(each)[:, None, None] for each in (mean, std))

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return float32 images of uint8 ones, [batch, channels, height, width]."""
        return pixels.float().sub_(self._mean).div_(self._std)
