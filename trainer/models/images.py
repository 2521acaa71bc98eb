"""What models for images share: what they must know of the data, and normalisations."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import gcd

import numpy as np
from torch import Tensor, nn

from trainer.data.dataset import Data, as_tensors
from trainer.errors import UserError

Norm = Callable[[int], nn.Module]  # makes a normalisation of a number of channels

_IMAGES = 4  # dimensions of a batch of them


@dataclass(frozen=True)
class ImageFacts:
    """What a model for images must know of its data.

    Attributes:
        channels: Channels of an image.
        height: Pixels.
        width: Pixels.
        classes: Classes of the images, or of their pixels.
    """

    channels: int
    height: int
    width: int
    classes: int


def image_facts(data: Data, model: str) -> ImageFacts:
    """Return what a model must know of the data.

    Args:
        data: The data.
        model: The model as a message names it, such as "model=resnet".

    Raises:
        UserError: The data is not images, or does not say how many classes it has.
    """
    first = as_tensors(data.training.inputs(np.zeros(1, dtype=np.int64)))
    if not isinstance(first, Tensor) or not first.is_floating_point() or first.dim() != _IMAGES:
        raise UserError(
            f"{model} needs images, float [batch, channels, height, width], which this data does not have: "
            "use data=images, data=cifar10 or data=digits"
        )
    if data.classes is None:
        raise UserError(f"{model} needs the number of classes: set Data.classes where the data is made")
    _, channels, height, width = first.shape
    return ImageFacts(channels, height, width, data.classes)


def norm_of(kind: str, groups: int) -> Norm:
    """Return what makes normalisations.

    Args:
        kind: "batch", of a micro-batch; or "group", of groups of channels of one image (Wu and He 2018,
            https://arxiv.org/abs/1803.08494).
        groups: The number of groups, or of as many as divide it and the channels.
    """
    return nn.BatchNorm2d if kind == "batch" else partial(_group_norm, groups)


def _group_norm(groups: int, channels: int) -> nn.Module:
    return nn.GroupNorm(gcd(groups, channels), channels)
