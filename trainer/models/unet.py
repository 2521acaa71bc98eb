"""A U-Net, which gives every pixel a class (Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597).

    down.0 -------------------------- up.0  head
        down.1 -------------- up.1
             down.2 --- up.2
                  middle

A skip passes through the layers between its ends on a stack, which a `down` pushes onto and an `up` pops
from. So a message between two stages holds the skips that are still needed, and no others. Unlike in the
paper, convolutions are padded, so that every pixel gets a class, and a normalisation follows each.
"""

from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.config.schema import UNetConfig
from trainer.data.dataset import Data
from trainer.errors import UserError
from trainer.models.images import Norm, image_facts, norm_of
from trainer.models.model import Layer, Model
from trainer.models.resnet import convolution
from trainer.models.segmentation import PixelLoss

# Features [batch, channels, height, width], and the skips to come: the next one last.
Activation = tuple[Tensor, tuple[Tensor, ...]]


def unet(config: UNetConfig, data: Data) -> Model:
    """Return a U-Net: images [batch, channels, height, width] to logits [batch, classes, height, width].

    Raises:
        UserError: The data is not images, or does not say how many classes its pixels have; or a side of the
            images cannot be halved so often.
    """
    facts = image_facts(data, "model=unet")
    for side in (facts.height, facts.width):
        if side % (1 << config.levels):
            raise UserError(
                f"model.levels={config.levels} halves images {config.levels} times, but a side of "
                f"{side} pixels is not divisible by {1 << config.levels}: use fewer levels, or another size"
            )
    norm = norm_of(config.norm, config.groups)
    widths = [config.width << level for level in range(config.levels + 1)]
    inputs = [facts.channels, *widths]
    levels = range(config.levels)
    layers = [Layer(f"down.{i}", partial(Down, inputs[i], widths[i], norm)) for i in levels]
    layers.append(Layer("middle", partial(Middle, widths[-2], widths[-1], norm, config.dropout)))
    layers += [Layer(f"up.{i}", partial(Up, widths[i + 1], widths[i], norm)) for i in reversed(levels)]
    layers.append(Layer("head", partial(Head, widths[0], facts.classes)))
    return Model(tuple(layers), PixelLoss())


class Twice(nn.Sequential):
    """Two convolutions, each with a normalisation and a ReLU."""

    def __init__(self, inputs: int, outputs: int, norm: Norm) -> None:
        def unit(channels: int) -> list[nn.Module]:
            return [convolution(channels, outputs, 3), norm(outputs), nn.ReLU()]

        super().__init__(*unit(inputs), *unit(outputs))


class Down(nn.Module):
    """Pushes features onto the stack, and halves the image.

    Args:
        inputs: Channels of the input.
        outputs: Channels of the output.
        norm: Makes a normalisation.
    """

    def __init__(self, inputs: int, outputs: int, norm: Norm) -> None:
        super().__init__()
        self.convolutions = Twice(inputs, outputs, norm)

    def forward(self, activation: Tensor | Activation) -> Activation:
        """Take the image itself, where it is the first."""
        x, skips = (activation, ()) if isinstance(activation, Tensor) else activation
        x = self.convolutions(x)
        return F.max_pool2d(x, 2), (*skips, x)


class Middle(nn.Module):
    """The features of the smallest image.

    Args:
        inputs: Channels of the input.
        outputs: Channels of the output.
        norm: Makes a normalisation.
        dropout: Share of the output that dropout zeroes.
    """

    def __init__(self, inputs: int, outputs: int, norm: Norm, dropout: float) -> None:
        super().__init__()
        self.convolutions = Twice(inputs, outputs, norm)
        self.dropout = nn.Dropout(dropout)

    def forward(self, activation: Activation) -> Activation:
        """Leave the stack as it is."""
        x, skips = activation
        return self.dropout(self.convolutions(x)), skips


class Up(nn.Module):
    """Doubles the image, and joins it with what it pops from the stack.

    Args:
        inputs: Channels of the input.
        outputs: Channels of the output, and of the skip.
        norm: Makes a normalisation.
    """

    def __init__(self, inputs: int, outputs: int, norm: Norm) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(inputs, outputs, 2, 2)
        self.convolutions = Twice(2 * outputs, outputs, norm)

    def forward(self, activation: Activation) -> Activation:
        """Pop one skip."""
        x, (*skips, skip) = activation
        return self.convolutions(torch.cat((self.up(x), skip), 1)), tuple(skips)


class Head(nn.Module):
    """The classes of the pixels.

    Args:
        inputs: Channels of the input.
        classes: Classes.
    """

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.classes = nn.Conv2d(inputs, classes, 1)

    def forward(self, activation: Activation) -> Tensor:
        """Return logits [batch, classes, height, width]."""
        x, _none_left = activation
        return cast(Tensor, self.classes(x))
