"""Residual networks for images (He et al. 2015, https://arxiv.org/abs/1512.03385).

    stem    layer1.0  layer1.1  ...  layer2.0  ...    head
            the first part           halves the image

The parts of the modules have torchvision's names. A bottleneck divides the image in its middle convolution,
as torchvision's does ("ResNet v1.5"), and not in its first, as the paper's.
"""

from functools import partial
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from trainer.config.schema import ResNetConfig
from trainer.data.dataset import Data
from trainer.models.gpt import TokenLoss
from trainer.models.images import Norm, image_facts, norm_of
from trainer.models.model import Layer, Model

DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
_BOTTLENECKED = 50  # from this depth on
_EXPANSION = 4  # of a bottleneck's channels, at its end


def resnet(config: ResNetConfig, data: Data) -> Model:
    """Return a residual network: images [batch, channels, height, width] to logits [batch, classes].

    Raises:
        UserError: The data is not images, or does not say how many classes it has.
    """
    facts = image_facts(data, "model=resnet")
    bottleneck = config.block == "bottleneck" or (config.block == "auto" and config.depth >= _BOTTLENECKED)
    norm = norm_of(config.norm, config.groups)
    block = partial(Residual, norm=norm, bottleneck=bottleneck, zero_last=config.zero_last)
    stem = partial(Stem, facts.channels, config.width, large=config.stem == "large", norm=norm)
    layers = [Layer("stem", stem)]
    inputs = config.width
    for part, number in enumerate(config.parts or DEPTHS[config.depth]):
        width = config.width << part
        for index in range(number):
            stride = 2 if part and not index else 1
            layers.append(Layer(f"layer{part + 1}.{index}", partial(block, inputs, width, stride)))
            inputs = _EXPANSION * width if bottleneck else width
    layers.append(Layer("head", partial(Head, inputs, facts.classes, config.dropout)))
    return Model(tuple(layers), TokenLoss())


def convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    """Return a convolution that keeps the image's size, divided by the stride; without bias.

    Its weights are drawn for a ReLU that follows (He et al. 2015, https://arxiv.org/abs/1502.01852).
    """
    made = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(made.weight, mode="fan_out", nonlinearity="relu")
    return made


class Stem(nn.Module):
    """The first convolution; for photographs it divides the image by four, with a pooling.

    Args:
        channels: Channels of an image.
        width: Channels of the output.
        large: Whether images are as large as photographs.
        norm: Makes a normalisation.
    """

    def __init__(self, channels: int, width: int, *, large: bool, norm: Norm) -> None:
        super().__init__()
        self.conv1 = convolution(channels, width, 7, 2) if large else convolution(channels, width, 3)
        self.bn1 = norm(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if large else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return [batch, width, height, width], or a quarter of these sides."""
        return cast(Tensor, self.maxpool(F.relu(self.bn1(self.conv1(x)))))


class Residual(nn.Module):
    """A block that adds to its input: two convolutions, or, as a bottleneck, three.

    Args:
        inputs: Channels of the input.
        width: Channels within.
        stride: By which it divides the image's size.
        bottleneck: Whether it has four times as many channels at its end as within.
        norm: Makes a normalisation.
        zero_last: Whether the last normalisation starts at 0, and so the block as the identity (Goyal et al.
            2017, https://arxiv.org/abs/1706.02677, section 5.1).
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        stride: int = 1,
        *,
        bottleneck: bool = False,
        norm: Norm = nn.BatchNorm2d,
        zero_last: bool = False,
    ) -> None:
        super().__init__()
        outputs = _EXPANSION * width if bottleneck else width
        self.conv1 = convolution(inputs, width, 1) if bottleneck else convolution(inputs, width, 3, stride)
        self.bn1 = norm(width)
        self.conv2 = convolution(width, width, 3, stride) if bottleneck else convolution(width, width, 3)
        self.bn2 = norm(width)
        self.conv3 = convolution(width, outputs, 1) if bottleneck else None
        self.bn3 = norm(outputs) if bottleneck else None
        self.downsample = (
            nn.Sequential(convolution(inputs, outputs, 1, stride), norm(outputs))
            if stride > 1 or inputs != outputs
            else None
        )
        if zero_last:
            nn.init.zeros_(cast(Tensor, (self.bn3 or self.bn2).weight))

    def forward(self, x: Tensor) -> Tensor:
        """Return [batch, outputs, height / stride, width / stride]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.conv3 is not None and self.bn3 is not None:
            y = self.bn3(self.conv3(F.relu(y)))
        return F.relu(cast(Tensor, y + shortcut))


class Head(nn.Module):
    """The mean over the image, and its classes.

    Args:
        inputs: Channels of the input.
        classes: Classes.
        dropout: Share of the means that dropout zeroes.
    """

    def __init__(self, inputs: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [batch, classes]."""
        return cast(Tensor, self.fc(self.dropout(F.adaptive_avg_pool2d(x, 1).flatten(1))))
