"""The loss scale: exact, halved by an overflow, doubled after a long run of good steps."""

import math
from dataclasses import asdict

import pytest
import torch

from trainer.optim.loss_scale import LossScale


def test_dividing_by_it_is_exact() -> None:
    torch.manual_seed(0)
    gradients = [torch.randn(100) * 2.0**-exponent for exponent in (0, 10, 40)]
    scale = LossScale()
    scaled = [gradient * scale.value for gradient in gradients]
    scale.unscale(scaled)
    assert all(torch.equal(one, other) for one, other in zip(scaled, gradients, strict=True))
    scale.unscale([])


@pytest.mark.parametrize("norm", [math.inf, math.nan])
def test_an_overflow_halves_it(norm: float) -> None:
    scale = LossScale(1024.0, good_steps=1999)
    assert not scale.accepts(norm)
    assert scale == LossScale(512.0, good_steps=0)
    assert scale.accepts(0.5)
    assert scale == LossScale(512.0, good_steps=1)


def test_two_thousand_good_steps_double_it() -> None:
    scale = LossScale()
    assert all(scale.accepts(1.0) for _ in range(1999))
    assert scale == LossScale(2.0**16, good_steps=1999)
    again = LossScale(**asdict(scale))  # as from a checkpoint
    assert scale.accepts(1.0)
    assert again.accepts(1.0)
    assert scale == again == LossScale(2.0**17, good_steps=0)


def test_a_model_that_overflows_by_itself_is_reported() -> None:
    scale = LossScale()
    with pytest.raises(OverflowError, match="use precision=bf16"):
        [scale.accepts(math.nan) for _ in range(100)]
