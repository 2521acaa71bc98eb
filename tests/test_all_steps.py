"""torch's recurrences on the meta device: the shapes, gradients and operations of the real ones."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from trainer.models.all_steps import on_meta_device

KINDS = (nn.LSTM, nn.GRU, nn.RNN)
WAYS = [
    dict(zip(("num_layers", "bidirectional", "batch_first", "bias"), way, strict=True))
    for way in product((1, 2), (False, True), (False, True), (False, True))
]
EXTRA: list[tuple[Any, dict[str, Any]]] = [
    (nn.LSTM, {"proj_size": 3}),
    (nn.GRU, {"num_layers": 2, "dropout": 0.5}),
    (nn.RNN, {"nonlinearity": "relu"}),
]


def shapes(values: Any) -> list[torch.Size]:
    return [tensor.shape for tensor in tree_leaves(values)]


@pytest.mark.parametrize(("kind", "way"), [*product(KINDS, WAYS), *EXTRA])
def test_shapes_and_gradients(kind: Any, way: dict[str, Any]) -> None:
    real = kind(4, 5, **way)(torch.randn(3, 7, 4))
    module, x = kind(4, 5, device="meta", **way), torch.empty(3, 7, 4, device="meta", requires_grad=True)
    with on_meta_device():
        output = module(x)
        assert shapes(output) == shapes(real)
        total = sum((tensor.sum() for tensor in tree_leaves(output)), torch.zeros(()))
        gradients = torch.autograd.grad(total, [x, *module.parameters()])
    assert shapes(gradients) == [x.shape, *(parameter.shape for parameter in module.parameters())]


def operations(module: nn.Module, x: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        module(x)[0].sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("kind", KINDS)
def test_as_many_operations_as_step_by_step(kind: Any) -> None:
    module, x = kind(8, 16, device="meta"), torch.empty(12, 3, 8, device="meta", requires_grad=True)
    with torch.device("meta"):
        step_by_step = operations(module, x)
    with on_meta_device():
        assert operations(module, x) == pytest.approx(step_by_step, rel=0.1)


def test_numbers_are_left_alone() -> None:
    module, x = nn.GRU(4, 5), torch.randn(3, 7, 4)
    expected = module(x)[0]
    with on_meta_device():
        assert torch.equal(module(x)[0], expected)
