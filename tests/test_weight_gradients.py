"""Split backwards: the same bits as full ones, for every kind of layer."""

import weakref
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.support.modules import ON_VECTORS, WIDTH, Build, Function, frozen, linear, three_times
from trainer.models.gpt import Block, Embedding, Head
from trainer.pipeline.layer import BuiltLayer
from trainer.pipeline.randomness import Randomness
from trainer.pipeline.stage import Stage

CPU = torch.device("cpu")
MICRO_BATCHES = 3


CONVOLUTIONS: dict[str, tuple[Build, tuple[int, ...], int]] = {  # with the input's shape
    "1d": (lambda: nn.Conv1d(6, 8, 3), (2, 6, 17), 2),
    "1d, stride": (lambda: nn.Conv1d(6, 8, 5, stride=2, padding=2), (2, 6, 17), 2),
    "2d": (lambda: nn.Conv2d(6, 8, 3, padding=1), (2, 6, 9, 9), 2),
    "2d, no bias": (lambda: nn.Conv2d(6, 8, 3, padding=1, bias=False), (2, 6, 9, 9), 1),
    "stride": (lambda: nn.Conv2d(6, 8, 3, stride=2), (2, 6, 9, 9), 2),
    "dilation": (lambda: nn.Conv2d(6, 8, 3, dilation=2), (2, 6, 9, 9), 2),
    "groups": (lambda: nn.Conv2d(6, 8, 3, groups=2), (2, 6, 9, 9), 2),
    "depthwise": (lambda: nn.Conv2d(6, 6, 3, padding=1, groups=6), (2, 6, 9, 9), 2),
    "depthwise, stride and dilation": (
        lambda: nn.Conv2d(6, 12, 3, stride=2, dilation=2, groups=6),
        (2, 6, 13, 13),
        2,
    ),
    "1x1": (lambda: nn.Conv2d(6, 8, 1), (2, 6, 9, 9), 2),
    "5x5, many images": (lambda: nn.Conv2d(6, 8, 5), (20, 6, 9, 9), 2),
    "one image": (lambda: nn.Conv2d(16, 32, 3, padding=1), (1, 16, 16, 16), 2),
    "no batch": (lambda: nn.Conv2d(6, 8, 3), (6, 9, 9), 2),
    "same": (lambda: nn.Conv2d(6, 8, 3, padding="same"), (2, 6, 9, 9), 2),
    "same, lopsided": (lambda: nn.Conv2d(6, 8, 4, padding="same"), (2, 6, 9, 9), 2),
    "reflected": (lambda: nn.Conv2d(6, 8, 3, padding=1, padding_mode="reflect"), (2, 6, 9, 9), 2),
    "channels last": (
        lambda: Function(lambda x, part: part(x.to(memory_format=torch.channels_last)), nn.Conv2d(6, 8, 3)),
        (2, 6, 9, 9),
        2,
    ),
    "weight with channels last": (
        lambda: nn.Conv2d(6, 8, 3).to(memory_format=torch.channels_last),
        (2, 6, 9, 9),
        2,
    ),
    "non-contiguous input": (
        lambda: Function(lambda x, part: part(x.transpose(2, 3)[:, :, ::2]), nn.Conv2d(6, 8, 3)),
        (2, 6, 9, 9),
        2,
    ),
    "3d": (lambda: nn.Conv3d(4, 6, 3, padding=1), (2, 4, 5, 5, 5), 2),
    "3d, groups": (lambda: nn.Conv3d(4, 6, (1, 3, 2), stride=(1, 2, 1), groups=2), (2, 4, 5, 5, 5), 2),
    "transposed": (lambda: nn.ConvTranspose2d(6, 8, 3, stride=2, output_padding=1), (2, 6, 9, 9), 2),
    "transposed, 1d, groups": (lambda: nn.ConvTranspose1d(6, 8, 3, groups=2), (2, 6, 9), 2),
    "weight frozen": (lambda: frozen(nn.Conv2d(6, 8, 3), "weight"), (2, 6, 9, 9), 1),
    "bias frozen": (lambda: frozen(nn.Conv2d(6, 8, 3), "bias"), (2, 6, 9, 9), 1),
    "twice": (
        lambda: Function(lambda x, part: part(part(x).relu()), nn.Conv2d(6, 6, 3)),
        (2, 6, 9, 9),
        2,
    ),
    "weight used besides": (
        lambda: Function(lambda x, part: part(x) * part.weight.sum(), nn.Conv2d(6, 8, 3)),
        (2, 6, 9, 9),
        1,
    ),
}

EMBEDDINGS: dict[str, tuple[Build, int]] = {
    "embedding": (lambda: nn.Embedding(20, WIDTH), 1),
    "padding": (lambda: nn.Embedding(20, WIDTH, padding_idx=3), 1),
    "by frequency": (lambda: nn.Embedding(20, WIDTH, scale_grad_by_freq=True), 1),
    "with a largest norm": (lambda: nn.Embedding(20, WIDTH, max_norm=1.0), 1),
    "twice": (lambda: Function(lambda x, part: part(x) + part(x + 1), nn.Embedding(21, WIDTH)), 1),
    "sparse": (lambda: nn.Embedding(20, WIDTH, sparse=True), 0),
}


def stage_of(*builds: Build) -> Stage:
    torch.manual_seed(0)
    layers = [BuiltLayer(i, f"layer {i}", build()) for i, build in enumerate(builds)]
    return Stage(0, layers, CPU, loss=None, randomness=Randomness(0), on_layer_done=lambda: None)


def vectors(*shape: int, wanted: bool = True) -> list[Tensor]:
    given = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=given).requires_grad_(wanted) for _ in range(MICRO_BATCHES)]


def tokens(*shape: int) -> list[Tensor]:
    given = torch.Generator().manual_seed(1)
    return [torch.randint(20, shape, generator=given) for _ in range(MICRO_BATCHES)]


def parameters(stage: Stage) -> list[nn.Parameter]:
    return [parameter for layer in stage.layers for parameter in layer.module.parameters()]


def train(
    stage: Stage, inputs: list[Tensor], *, split: bool, autocast: bool = False
) -> tuple[list[Tensor], list[Tensor | None], list[bool]]:
    """Run all forwards, then all backwards; return input gradients, gradients, and which were deferred."""
    given = torch.Generator().manual_seed(2)
    outputs = []
    for i, x in enumerate(inputs):
        with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
            ((output,), _) = stage.forward(i, [x], 0, split=split)
        outputs.append(output)
    seeds = [torch.randn(output.shape, generator=given).to(output.dtype) for output in outputs]
    back = [gradient for i, seed in enumerate(seeds) for gradient in stage.backward(i, [seed])]
    later = [p.requires_grad and p.grad is None for p in parameters(stage)]
    if split:
        for i in range(len(inputs)):
            stage.weight_gradients(i)
    return back, [p.grad for p in parameters(stage)], later


def assert_equal(these: list[Tensor | None], those: list[Tensor | None]) -> None:
    assert len(these) == len(those)
    for this, that in zip(these, those, strict=True):
        assert (this is None) == (that is None)
        if this is not None:
            assert this.dtype == that.dtype
            assert this.stride() == that.stride() or this.is_sparse
            assert torch.equal(this.to_dense(), that.to_dense())


def assert_split_equals_full(
    builds: list[Build], inputs: list[Tensor], *, later: int | None = None, autocast: bool = False
) -> None:
    whole = train(stage_of(*builds), inputs, split=False, autocast=autocast)
    split = train(stage_of(*builds), inputs, split=True, autocast=autocast)
    assert_equal([*whole[0], *whole[1]], [*split[0], *split[1]])
    assert any(gradient is not None and gradient.to_dense().any() for gradient in whole[1])
    assert not any(whole[2])
    assert later is None or sum(split[2]) == later


PRECISION = pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "autocast"])
FIRST = pytest.mark.parametrize("wanted", [True, False], ids=["gradient wanted", "first stage"])


@PRECISION
@FIRST
@pytest.mark.parametrize("shape", [(5,), (3, 7), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("name", ON_VECTORS)
def test_on_vectors(name: str, shape: tuple[int, ...], *, wanted: bool, autocast: bool) -> None:
    """A layer between two linear maps, which defer their weights and biases too."""
    build, later = ON_VECTORS[name]
    assert_split_equals_full(
        [linear, build, linear], vectors(*shape, WIDTH, wanted=wanted), later=2 + later + 2, autocast=autocast
    )


@PRECISION
@FIRST
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str, *, wanted: bool, autocast: bool) -> None:
    build, shape, later = CONVOLUTIONS[name]
    assert_split_equals_full([build], vectors(*shape, wanted=wanted), later=later, autocast=autocast)


@PRECISION
@pytest.mark.parametrize("name", EMBEDDINGS)
def test_embeddings(name: str, *, autocast: bool) -> None:
    build, later = EMBEDDINGS[name]
    assert_split_equals_full([build, linear], tokens(3, 11), later=later + 2, autocast=autocast)


def cnn() -> list[Build]:
    """The blocks of a small image network, like those of ResNet and MobileNet."""

    def residual() -> nn.Module:
        body = nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)
        )
        return Function(lambda x, part: x + part(x), body)

    def separable() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU6(inplace=True),
            nn.Conv2d(16, 32, 1, bias=False),
            nn.BatchNorm2d(32),
        )

    return [
        lambda: nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True)),
        residual,
        separable,
        lambda: nn.Conv2d(32, 32, 3, stride=2, groups=4),
        lambda: nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10)),
    ]


def gpt() -> list[Build]:
    sizes = {"width": WIDTH, "heads": 4, "dropout": 0.0}
    return [
        partial(Embedding, vocabulary=20, width=WIDTH, context=16, dropout=0.0),
        *[partial(Block, blocks=2, rotary=rotary, **sizes) for rotary in (False, True)],
        partial(Head, vocabulary=20, width=WIDTH),
    ]


def transformer() -> list[Build]:
    """PyTorch's transformer."""
    layer = partial(nn.TransformerEncoderLayer, WIDTH, 4, 48, dropout=0.0)
    return [partial(nn.Embedding, 20, WIDTH), layer, partial(layer, batch_first=True, norm_first=True)]


@PRECISION
@pytest.mark.parametrize(
    ("builds", "inputs", "waiting"),
    [
        pytest.param(cnn(), vectors(4, 3, 12, 12, wanted=False), 0.9, id="cnn"),
        pytest.param(gpt(), tokens(3, 16), 0.95, id="gpt"),
        pytest.param(transformer(), tokens(3, 16), 0.9, id="transformer"),
    ],
)
def test_full_models(builds: list[Build], inputs: list[Tensor], waiting: float, *, autocast: bool) -> None:
    """The bits of plain autograd with one graph for the full model; most weights are deferred."""
    stage = stage_of(*builds)
    _, gradients, later = train(stage, inputs, split=True, autocast=autocast)
    assert_equal(gradients, plain_gradients(builds, inputs, autocast=autocast))
    sizes = [parameter.numel() for parameter in parameters(stage)]
    assert sum(size for size, waits in zip(sizes, later, strict=True) if waits) > waiting * sum(sizes)


def plain_gradients(builds: list[Build], inputs: list[Tensor], *, autocast: bool) -> list[Tensor | None]:
    """Return the gradients of the same model and output gradients, by plain PyTorch."""
    torch.manual_seed(0)
    network = nn.Sequential(*(build() for build in builds))
    given = torch.Generator().manual_seed(2)
    for x in inputs:
        with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
            output = network(x)
        output.backward(torch.randn(output.shape, generator=given).to(output.dtype))
    return [parameter.grad for parameter in network.parameters()]


def test_full_and_split_backwards_alternate() -> None:
    """As when a schedule splits only some of a stage's backwards."""
    gradients = []
    for splits in ((), (0, 2)):
        stage = stage_of(linear, lambda: Function(three_times, linear()), linear)
        for i, x in enumerate(vectors(2, WIDTH)):
            (y,), _ = stage.forward(i, [x], 0, split=i in splits)
            stage.backward(i, [torch.ones_like(y)])
            if i in splits:
                stage.weight_gradients(i)
        gradients.append([parameter.grad for parameter in parameters(stage)])
    assert_equal(*gradients)


def test_layers_complete_in_the_second_part() -> None:
    stage, complete = stage_of(linear, nn.Tanh, linear), list[str]()
    (y,), _ = stage.forward(0, vectors(2, WIDTH)[:1], 0, split=True)
    stage.backward(0, [y], lambda layer: complete.append(layer.name))
    assert complete == []
    stage.weight_gradients(0, lambda layer: complete.append(layer.name))
    assert complete == ["layer 2", "layer 1", "layer 0"]


def test_a_weight_of_two_layers() -> None:
    """It is deferred in neither layer: its uses would otherwise be added in another order."""
    module = linear()
    stage = stage_of(lambda: nn.Sequential(module, nn.Tanh()), lambda: nn.Sequential(module))
    _, _, later = train(stage, vectors(2, WIDTH), split=True)
    assert not any(later)


@pytest.mark.parametrize("numbers", [(1.0, -1.0, 1.0), (-1.0, 1.0, -1.0)])
def test_a_weight_that_is_used_in_another_way_later(numbers: tuple[float, ...]) -> None:
    """Its gradients are added in the order of micro-batches all the same."""

    def sometimes(x: Tensor, part: nn.Linear) -> Tensor:
        return part(x) * part.weight.sum() if x[0, 0] > 0 else part(x)

    inputs = [torch.full((2, WIDTH), number) for number in numbers]
    assert_split_equals_full([lambda: Function(sometimes, linear())], inputs)


@pytest.mark.slow
def test_what_is_compiled_is_whole() -> None:
    compiled = torch.compile(linear(), backend="aot_eager")
    stage = stage_of(linear, lambda: compiled, linear)
    _, gradients, later = train(stage, vectors(3, WIDTH), split=True)
    assert later == [True, True, False, False, True, True]
    assert all(gradient is not None for gradient in gradients)


@pytest.mark.parametrize(
    "build", [linear, partial(nn.Conv1d, 3, 3, 3), nn.GELU], ids=["linear", "convolution", "none"]
)
def test_nothing_is_kept_after_the_second_part(build: Build) -> None:
    """Inputs and output gradients are kept until then where weights are deferred, else freed before."""
    stage = stage_of(build)
    arrays = np.ones((3, WIDTH), np.float32), np.ones(build().forward(torch.ones(3, WIDTH)).shape, np.float32)
    alive = [weakref.ref(array) for array in arrays]
    x, gradient = map(torch.from_numpy, arrays)
    stage.forward(0, [x.requires_grad_()], 0, split=True)
    stage.backward(0, [gradient])
    del x, gradient, arrays
    kept = [reference() is not None for reference in alive]
    stage.weight_gradients(0)
    assert kept == [bool(list(stage.layers[0].module.parameters()))] * 2
    assert [reference() for reference in alive] == [None, None]
