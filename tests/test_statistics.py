"""Running statistics: from the global batch, once a step, wherever the model is cut."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.fixtures.images import convolutional, images
from tests.support.one_process import Given, Pipeline
from trainer.errors import UserError
from trainer.pipeline.layer import BuiltLayer
from trainer.pipeline.statistics import RunningStatistics

ALONE: Any = SimpleNamespace(size=1, all_gather=lambda values, counts: values)  # one replica
SIZES = [4, 4, 4, 3]


def batches(start: int = 0) -> Given:
    data = images().training
    parts = np.split(np.arange(start, start + sum(SIZES)), np.cumsum(SIZES)[:-1])
    return Given([data.inputs(part) for part in parts], [data.targets(part) for part in parts])


def trained(sizes: list[int], schedule: str = "1f1b", steps: int = 2) -> Pipeline:
    """Return a pipeline that has processed some global batches without changing its weights."""
    pipeline = Pipeline(convolutional(images()), sizes, schedule)
    statistics = RunningStatistics(pipeline.layers)
    for step in range(steps):
        pipeline.train(batches(sum(SIZES) * step), len(SIZES))
        statistics.update(ALONE)
    return pipeline


def buffers(pipeline: Pipeline) -> dict[str, Tensor]:
    return {f"{layer.name}/{n}": b for layer in pipeline.layers for n, b in layer.module.named_buffers()}


def expected(steps: int = 2) -> dict[str, tuple[Tensor, Tensor]]:
    """Return mean and variance of every norm by definition: over the inputs of complete global batches."""
    modules = [layer.module for layer in Pipeline(convolutional(images()), [5]).layers]
    norms = {
        str(i): norm
        for i, module in enumerate(modules)
        for norm in module.modules()
        if isinstance(norm, nn.BatchNorm2d)
    }
    seen: dict[str, list[Tensor]] = {name: [] for name in norms}
    for name, norm in norms.items():
        norm.register_forward_pre_hook(lambda _, inputs, name=name: seen[name].append(inputs[0]))
    moved = {name: (torch.zeros(8).double(), torch.ones(8).double()) for name in norms}
    for step in range(steps):
        for values in seen.values():
            values.clear()
        source = batches(sum(SIZES) * step)
        for i in range(len(SIZES)):
            nn.Sequential(*modules)(source.inputs(i))
        for name, norm in norms.items():
            inputs = torch.cat(seen[name]).double()
            momentum = 1 / (step + 1) if norm.momentum is None else norm.momentum
            mean, variance = moved[name]
            moved[name] = (
                mean.lerp(inputs.mean((0, 2, 3)), momentum),
                variance.lerp(inputs.var((0, 2, 3)), momentum),
            )
    return moved


def test_they_describe_the_global_batch() -> None:
    found = buffers(trained([5]))
    wanted = expected()
    for place, name in (("0", "convolution.0/1."), ("1", "convolution.1/1."), ("2", "plain/")):
        mean, variance = wanted[place]
        torch.testing.assert_close(found[f"{name}running_mean"].double(), mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found[f"{name}running_var"].double(), variance, rtol=1e-5, atol=1e-6)
        assert found[f"{name}num_batches_tracked"] == 2


def test_a_frozen_layer_keeps_its_own() -> None:
    found = buffers(trained([5]))
    assert torch.equal(found["frozen/1.running_mean"], torch.zeros(8))
    assert torch.equal(found["frozen/1.running_var"], torch.ones(8))
    assert found["frozen/1.num_batches_tracked"] == 0


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe"])
@pytest.mark.parametrize("sizes", [[1, 4], [2, 1, 2], [1, 1, 1, 1, 1]])
def test_they_have_the_same_bits_in_every_cut(sizes: list[int], schedule: str) -> None:
    one, other = buffers(trained([5])), buffers(trained(sizes, schedule))
    assert one.keys() == other.keys()
    for name, buffer in one.items():
        assert torch.equal(buffer, other[name]), name


def test_training_normalises_each_micro_batch() -> None:
    """With the same statistics as PyTorch, and so with PyTorch's gradients."""
    pipeline = trained([2, 3], steps=1)
    plain = Pipeline(convolutional(images()), [5])
    network, source = nn.Sequential(*(layer.module for layer in plain.layers)), batches()
    for i in range(len(SIZES)):
        plain.model.loss(network(source.inputs(i)), source.targets(i)).backward()
    theirs = plain.gradients()
    for name, gradient in pipeline.gradients().items():
        if gradient is not None:
            torch.testing.assert_close(gradient, theirs[name])


def test_evaluation_uses_them_without_changing_them() -> None:
    pipeline = trained([2, 3])
    before = {name: buffer.clone() for name, buffer in buffers(pipeline).items()}
    one = pipeline.evaluate(batches(), len(SIZES))
    network = nn.Sequential(*(layer.module for layer in pipeline.layers)).eval()
    source = batches()
    losses = [pipeline.model.loss(network(source.inputs(i)), source.targets(i)).item() for i in range(4)]
    assert one == pytest.approx(losses)
    for name, buffer in buffers(pipeline).items():
        assert torch.equal(buffer, before[name]), name


def test_nan_does_not_persist() -> None:
    module = nn.BatchNorm1d(2)
    statistics = RunningStatistics([BuiltLayer(0, "norm", module)])
    module(torch.full((3, 2), torch.nan))
    statistics.update(ALONE)
    assert module.running_mean.isnan().all()
    module.reset_running_stats()
    module(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    statistics.update(ALONE)
    torch.testing.assert_close(module.running_mean, torch.tensor([0.2, 0.3]))


@pytest.mark.parametrize(
    ("module", "word"),
    [
        (nn.Sequential(nn.SyncBatchNorm(4)), "SyncBatchNorm"),
        (nn.InstanceNorm2d(4, track_running_stats=True), "InstanceNorm"),
    ],
)
def test_norms_that_depend_on_the_layout_are_refused(module: nn.Module, word: str) -> None:
    with pytest.raises(UserError, match=word):
        RunningStatistics([BuiltLayer(0, "layer", module)])


def test_other_norms_are_accepted() -> None:
    modules = nn.Sequential(
        nn.InstanceNorm2d(4), nn.BatchNorm2d(4, track_running_stats=False), nn.LayerNorm(3)
    )
    statistics = RunningStatistics([BuiltLayer(0, "layer", modules)])
    modules(torch.rand(2, 4, 3, 3))
    statistics.update(ALONE)
    assert not list(modules.buffers())


def test_a_skipped_step_does_not_change_them() -> None:
    pipeline = Pipeline(convolutional(images()), [2, 3])
    statistics = RunningStatistics(pipeline.layers)
    before = {name: buffer.clone() for name, buffer in buffers(pipeline).items()}
    pipeline.train(batches(sum(SIZES)), len(SIZES))
    statistics.forget()
    assert all(torch.equal(buffer, before[name]) for name, buffer in buffers(pipeline).items())
    pipeline.train(batches(), len(SIZES))
    statistics.update(ALONE)
    once = buffers(trained([2, 3], steps=1))
    assert all(torch.equal(buffer, once[name]) for name, buffer in buffers(pipeline).items())
