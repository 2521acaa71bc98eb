"""The U-Net computes what one nested forward computes; a cut is crossed by the skips still needed."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.pictures import images
from trainer.activation import flatten
from trainer.config.schema import UNetConfig
from trainer.errors import UserError
from trainer.models.build import build_model
from trainer.models.gpt import MASKED
from trainer.models.segmentation import PixelLoss, iou

CONFIG = UNetConfig(levels=3, width=4)


def layers(config: UNetConfig = CONFIG) -> dict[str, nn.Module]:
    return {layer.name: layer.build() for layer in build_model(config, images(16, classes=5)).layers}


def nested(parts: dict[str, nn.Module], x: Tensor, level: int = 0) -> Tensor:
    """Return the features of a level, as the paper draws them: down, all below, up."""
    if level == CONFIG.levels:
        return parts["middle"].convolutions(x)
    skip = parts[f"down.{level}"].convolutions(x)
    below = nested(parts, F.max_pool2d(skip, 2), level + 1)
    up = parts[f"up.{level}"]
    return up.convolutions(torch.cat((up.up(below), skip), 1))


def test_outputs_and_gradients() -> None:
    parts = layers()
    x = torch.randn(2, 3, 16, 16)
    activation: object = x
    for layer in parts.values():
        activation = layer(activation)
    expected = parts["head"].classes(nested(parts, x))
    assert expected.shape == (2, 5, 16, 16)
    assert torch.equal(activation, expected)
    weights = [parameter for layer in parts.values() for parameter in layer.parameters()]
    gradients = [torch.autograd.grad(each.sin().sum(), weights) for each in (activation, expected)]
    assert all(map(torch.equal, *gradients))


def test_what_crosses_each_cut() -> None:
    activation: object = torch.randn(2, 3, 16, 16)
    crossing = {}
    for name, layer in layers().items():
        activation = layer(activation)
        crossing[name] = [tuple(tensor.shape[1:]) for tensor in flatten(activation)[0]]
    first, second, third = (4, 16, 16), (8, 8, 8), (16, 4, 4)
    assert crossing == {
        "down.0": [(4, 8, 8), first],
        "down.1": [(8, 4, 4), first, second],
        "down.2": [(16, 2, 2), first, second, third],
        "middle": [(32, 2, 2), first, second, third],
        "up.2": [third, first, second],
        "up.1": [second, first],
        "up.0": [first],
        "head": [(5, 16, 16)],
    }


def test_the_size_must_be_divisible() -> None:
    with pytest.raises(UserError, match=r"model\.levels=4 halves images 4 times, but a side of 24 pixels"):
        build_model(UNetConfig(), images(24))


def test_loss_and_metric() -> None:
    generator = np.random.default_rng(0)
    logits = torch.from_numpy(generator.normal(size=(3, 4, 6, 5)))
    classes = torch.from_numpy(generator.integers(0, 4, (3, 6, 5)))
    classes[0, 2:4] = MASKED
    classes[2] = 0
    logits[2, 0] += 100  # an image of background, found to be one
    loss = PixelLoss()
    assert loss.count(classes) == 3 * 30 - 10
    torch.testing.assert_close(
        loss(logits, classes) / 80, F.cross_entropy(logits, classes, ignore_index=MASKED)
    )

    expected = 0.0
    for image in range(3):
        ratios = []
        for kind in range(1, 4):
            wanted = {i for i, c in enumerate(classes[image].flatten().tolist()) if c == kind}
            there = {i for i, c in enumerate(classes[image].flatten().tolist()) if c != MASKED}
            given = {i for i, c in enumerate(logits[image].argmax(0).flatten().tolist()) if c == kind} & there
            if wanted | given:
                ratios.append(len(wanted & given) / len(wanted | given))
        expected += sum(ratios) / len(ratios) if ratios else 1.0
    total, count = iou(logits, classes)
    assert (float(total), count) == (pytest.approx(expected), 3)
