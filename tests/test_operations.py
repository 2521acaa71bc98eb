"""The operations of a layer as `trainer.verify` records them, to find the first that differs."""

import torch
from torch import Tensor, nn

from trainer.pipeline.layer import BuiltLayer
from trainer.pipeline.statistics import RunningStatistics
from trainer.verify.bisection import _difference
from trainer.verify.operations import run_recorded
from trainer.verify.reference_buffers import statistics_of


class Inner(nn.Module):
    factor = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return x.sin() * self.factor


def layer() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 4), nn.Sequential(Inner(), nn.BatchNorm1d(4)))


def test_equal_runs_have_equal_operations_and_leave_no_trace() -> None:
    module, x = layer(), torch.randn(3, 4)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    (first, output), (second, _) = run_recorded(module, x), run_recorded(module, x)
    assert _difference("layer", first, second, first, 0) is None
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert isinstance(output, Tensor)
    assert torch.equal(output, module(x))
    assert any(operation.place == "the backward" for operation in first)
    assert all(parameter.grad is None for parameter in module.parameters())


def test_the_first_operation_that_differs_is_named_with_its_place() -> None:
    module, x = layer(), torch.randn(3, 4)
    first, _ = run_recorded(module, x)
    module[1][0].factor = 1.5  # type: ignore[index, union-attr]
    second, _ = run_recorded(module, x)
    words = _difference("name", first, second, second, 0)
    assert words is not None
    assert words.startswith("layer 'name' gives other results when it runs again")
    assert "first in aten.mul.Tensor (1.0, test_operations.py:" in words
    assert "on rank 2 than in the reference" in str(_difference("name", first, first, second, 2))


def test_running_statistics_are_no_difference() -> None:
    """The launch and the reference keep them in different ways, which explains nothing."""
    one, other, x = layer(), layer(), torch.randn(3, 4)
    RunningStatistics([BuiltLayer(0, "layer", one)])
    statistics_of({"layer": other})
    first, second = (run_recorded(module, x)[0] for module in (one, other))
    assert _difference("layer", first, first, second, 0) is None
    assert any("batch_norm" in operation.kernel for operation in first)
    for module in (one, other):
        assert len(module[1][1]._forward_pre_hooks) == 1  # type: ignore[index]


def test_a_layer_that_raises_is_recorded_until_there() -> None:
    operations, output = run_recorded(layer(), torch.randn(1, 4))  # one sample cannot be normalised
    assert output is None
    assert {"aten.sin.default", "aten.mul.Tensor"} <= {operation.kernel for operation in operations}
    assert not any(operation.place == "the backward" for operation in operations)
