"""Residual networks for images (He et al. 2015, https://arxiv.org/abs/1512.03385), as plain modules.

The parts have torchvision's names. They train with `model=module model.blocks=[layer1,layer2,layer3,layer4]`.
"""

from collections.abc import Sequence
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
_BOTTLENECKED = 50  # from this depth on


def convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    """Return a convolution that keeps the image's size, divided by the stride; without bias."""
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


class Residual(nn.Module):
    """A block that adds to its input: two convolutions, or, as a bottleneck, three.

    Args:
        inputs: Channels of the input.
        width: Channels within.
        stride: By which it divides the image's size.
        bottleneck: Whether it has four times as many channels at its end as within.
    """

    def __init__(self, inputs: int, width: int, stride: int = 1, *, bottleneck: bool = False) -> None:
        super().__init__()
        outputs = 4 * width if bottleneck else width
        self.conv1 = convolution(inputs, width, 1) if bottleneck else convolution(inputs, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = convolution(width, width, 3, stride) if bottleneck else convolution(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = convolution(width, outputs, 1) if bottleneck else None
        self.bn3 = nn.BatchNorm2d(outputs) if bottleneck else None
        self.downsample = (
            nn.Sequential(convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
            if stride > 1 or inputs != outputs
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return [batch, outputs, height / stride, width / stride]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.conv3 is not None and self.bn3 is not None:
            y = self.bn3(self.conv3(F.relu(y)))
        return F.relu(cast(Tensor, y + shortcut))


class ResNet(nn.Module):
    """A residual network.

    Args:
        depths: Blocks of each part, of which each but the first halves the image.
        width: Channels of the first part.
        classes: Classes.
        channels: Channels of an image.
        bottleneck: Whether its blocks are bottlenecks.
        stem: Whether the image is divided by four first, as for photographs.
    """

    def __init__(  # noqa: PLR0917
        self,
        depths: Sequence[int],
        width: int = 64,
        classes: int = 1000,
        channels: int = 3,
        bottleneck: bool = False,
        stem: bool = True,
    ) -> None:
        super().__init__()
        self.conv1 = convolution(channels, width, 7, 2) if stem else convolution(channels, width, 3)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if stem else nn.Identity()
        inputs, grows = width, 4 if bottleneck else 1
        for part, depth in enumerate(depths):
            blocks = []
            for number in range(depth):
                stride = 2 if part and not number else 1
                blocks.append(Residual(inputs, width << part, stride, bottleneck=bottleneck))
                inputs = grows * (width << part)
            self.add_module(f"layer{part + 1}", nn.Sequential(*blocks))
        self.parts = len(depths)
        self.fc = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [batch, classes] of images [batch, channels, height, width]."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        for part in range(self.parts):
            x = self.get_submodule(f"layer{part + 1}")(x)
        return cast(Tensor, self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1)))


def resnet(depth: int = 18, classes: int = 1000) -> ResNet:
    """Return the network of the paper of a depth for photographs: ResNet-18, -34, -50 or -101."""
    return ResNet(DEPTHS[depth], classes=classes, bottleneck=depth >= _BOTTLENECKED)
