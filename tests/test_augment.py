"""Random changes of images: what they may give, and that a seed determines them."""

import math

import pytest
import torch
import torch.nn.functional as F

from trainer.data.augment import Parts, flipped, shifted, warped
from trainer.seeds import seed_generators

IMAGES = torch.arange(1, 201 * 3 * 4 * 5 + 1, dtype=torch.float32)[: 200 * 3 * 4 * 5].view(200, 3, 4, 5)


def test_flipped() -> None:
    seed_generators(0)
    once = flipped(IMAGES)
    mirrored = [torch.equal(image, other.flip(-1)) for image, other in zip(once, IMAGES, strict=True)]
    kept = [torch.equal(image, other) for image, other in zip(once, IMAGES, strict=True)]
    assert all(one != other for one, other in zip(mirrored, kept, strict=True))
    assert 70 < sum(mirrored) < 130
    seed_generators(0)
    assert torch.equal(flipped(IMAGES), once)


def test_shifted() -> None:
    seed_generators(0)
    seen = set()
    for image, other in zip(shifted(IMAGES, 2), IMAGES, strict=True):
        padded = F.pad(other, [2] * 4)
        places = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if torch.equal(padded[:, top : top + 4, left : left + 5], image)
        ]
        assert len(places) == 1
        seen |= set(places)
    assert len(seen) == 25  # every shift


def test_warped_by_nothing() -> None:
    torch.testing.assert_close(warped(IMAGES, 0, 1, 0), IMAGES)


def test_warped() -> None:
    """A spot that is far from the middle goes along: its distance shows the zoom, its angle the rotation."""
    height, width = 60, 80
    rows, columns = torch.meshgrid(torch.arange(height) - 29.5, torch.arange(width) - 39.5, indexing="ij")
    spot = torch.exp(-((rows - 5) ** 2 + (columns - 18) ** 2) / 8)

    def places(*by: float) -> tuple[torch.Tensor, torch.Tensor]:
        seed_generators(0)
        images = warped(spot.expand(300, 1, -1, -1), *by)[:, 0]
        mass = images.sum((1, 2))
        return (images * columns).sum((1, 2)) / mass, (images * rows).sum((1, 2)) / mass

    x, y = places(20, 1, 0)  # a circle
    torch.testing.assert_close(torch.hypot(x, y), torch.full((300,), math.hypot(18, 5)), rtol=0.01, atol=0)
    angles = torch.rad2deg(torch.atan2(y, x)) - math.degrees(math.atan2(5, 18))
    assert -20.5 < angles.min() < -18 < 18 < angles.max() < 20.5

    x, y = places(0, 1.5, 0)  # a ray
    torch.testing.assert_close(y / x, torch.full((300,), 5 / 18), rtol=0.02, atol=0)
    assert 1 / 1.52 < x.min() / 18 < 1 / 1.4 < 1.4 < x.max() / 18 < 1.52

    x, y = places(0, 1, 6)  # a square
    for shifts in (x - 18, y - 5):
        assert -6.1 < shifts.min() < -5 < 5 < shifts.max() < 6.1


@pytest.mark.parametrize(("width", "height"), [(500, 375), (30, 40), (64, 64)])
def test_parts(width: int, height: int) -> None:
    seed_generators(0)
    number = 1000
    parts = Parts(number, 0.25)
    boxes = [parts.box(image, width, height) for image in range(number)]
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        across, down = right - left, bottom - top
        assert 0.25 * 0.9 < across * down / (width * height) <= 1
        assert 3 / 4 * 0.94 < across / down < 4 / 3 * 1.06  # rounded to whole pixels
    ratios = [math.log((right - left) / (bottom - top)) for left, top, right, bottom in boxes]
    assert abs(sum(ratios) / number) < 0.1
    assert len(set(boxes)) > number // 2
    assert [parts.box(image, width, height) for image in range(number)] == boxes


@pytest.mark.parametrize(
    ("width", "height", "box"),
    [(400, 10, (193, 0, 206, 10)), (10, 400, (0, 193, 10, 206)), (1, 1, (0, 0, 1, 1))],
)
def test_parts_of_long_images(width: int, height: int, box: tuple[int, ...]) -> None:
    """No part of nearly all of the area has an allowed ratio."""
    assert Parts(1, 0.9).box(0, width, height) == box
