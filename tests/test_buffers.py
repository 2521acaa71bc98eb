"""Buffers that forwards change, where several modules share one; and frozen weights that serve as such."""

import pytest
import torch
from torch import Tensor, nn

from trainer.pipeline.layer import BuiltLayer
from trainer.pipeline.randomness import Randomness
from trainer.pipeline.recomputation import Recompute
from trainer.pipeline.stage import Stage

STEPS = 2
MICRO_BATCHES = 3


class Shared(nn.Module):
    """Counts in one module, and reads the count in another."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.inner = nn.Linear(4, 4), nn.Module()
        self.register_buffer("count", torch.zeros(()))
        self.inner.register_buffer("count", self.count)

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return self.linear(x) * self.inner.count


def gradients(layer: nn.Module) -> list[Tensor]:
    found = [parameter.grad for parameter in layer.parameters()]
    assert all(gradient is not None for gradient in found)
    return found


def stage_of(layer: BuiltLayer, recompute: Recompute) -> Stage:
    return Stage(
        0,
        [layer],
        torch.device("cpu"),
        loss=None,
        randomness=Randomness(0),
        on_layer_done=lambda: None,
        recompute=[recompute],
    )


@pytest.mark.parametrize("recompute", list(Recompute))
def test_a_shared_buffer_stays_shared(recompute: Recompute) -> None:
    torch.manual_seed(0)
    plain = Shared()
    layer = BuiltLayer(0, "layer", Shared())
    layer.module.load_state_dict(plain.state_dict())
    stage = stage_of(layer, recompute)
    x = torch.randn(5, 4)
    for _ in range(STEPS):
        for micro_batch in range(MICRO_BATCHES):
            stage.forward(micro_batch, [x], 0)
        for micro_batch in range(MICRO_BATCHES):
            stage.backward(micro_batch, [torch.ones(5, 4)])
            plain(x).sum().backward()
    assert layer.module.inner.count == plain.count == STEPS * MICRO_BATCHES
    assert layer.module.count is layer.module.inner.count
    for this, that in zip(gradients(layer.module), gradients(plain), strict=True):
        torch.testing.assert_close(this, that)


class Counting(nn.Linear):
    """Counts its forwards in a weight that does not train."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.count = nn.Parameter(torch.zeros(()), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return super().forward(x)


@pytest.mark.parametrize("recompute", list(Recompute))
def test_a_recomputed_forward_leaves_weights_as_they_are(recompute: Recompute) -> None:
    layer = BuiltLayer(0, "layer", Counting())
    stage = stage_of(layer, recompute)
    for _ in range(MICRO_BATCHES):
        stage.forward(0, [torch.ones(5, 4)], 0)
        stage.backward(0, [torch.ones(5, 4)])
    assert layer.module.count == MICRO_BATCHES
