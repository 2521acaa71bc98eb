"""Buffers that forwards change, where several modules share one."""

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


@pytest.mark.parametrize("recompute", list(Recompute))
def test_a_shared_buffer_stays_shared(recompute: Recompute) -> None:
    torch.manual_seed(0)
    plain = Shared()
    layer = BuiltLayer(0, "layer", Shared())
    layer.module.load_state_dict(plain.state_dict())
    stage = Stage(
        0,
        [layer],
        torch.device("cpu"),
        loss=None,
        randomness=Randomness(0),
        on_layer_done=lambda: None,
        recompute=[recompute],
    )
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
