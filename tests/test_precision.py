"""Mixed precision: which types are used where, and bits that no cut and no split changes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.fixtures import FIXTURES
from tests.support.modules import ON_VECTORS, WIDTH
from tests.support.one_process import Pipeline
from trainer.activation import Activation
from trainer.pipeline.layer import BuiltLayer
from trainer.pipeline.precision import Precision
from trainer.pipeline.randomness import Randomness
from trainer.pipeline.stage import Stage

CPU = torch.device("cpu")
TYPES = [torch.bfloat16, torch.float16]


def stage_of(compute: torch.dtype, *modules: nn.Module, loss: Any = None) -> Stage:
    layers = [BuiltLayer(i, f"layer{i}", module) for i, module in enumerate(modules)]
    precision = Precision(compute)
    return Stage(
        0, layers, CPU, loss=loss, randomness=Randomness(0), on_layer_done=lambda: None, precision=precision
    )


class Function(nn.Module):
    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self._function = function

    def forward(self, activation: Any) -> Any:
        return self._function(activation)


class Float32Sum:
    """A custom loss that sums its input."""

    def count(self, target: Activation) -> int:
        return 1

    def __call__(self, output: Any, target: Activation) -> Tensor:
        assert not torch.is_autocast_enabled("cpu")
        assert output["scores"].dtype is torch.float32
        assert output["classes"].dtype is torch.int64
        return output["scores"].sum()


@pytest.mark.parametrize("compute", [torch.float32, *TYPES])
def test_types_between_layers(compute: torch.dtype) -> None:
    """The types hold between any two layers, cut or not."""

    def everything(x: Tensor) -> dict[str, Any]:
        others = {"double": x.double(), "integer": x.long(), "mask": x > 0, "nothing": None}
        return {"weight": torch.ones(3), "x": x, **others}

    def check(nest: dict[str, Any]) -> dict[str, Any]:
        types = {name: tensor.dtype for name, tensor in nest.items() if tensor is not None}
        assert types == {
            "weight": compute,
            "x": compute,
            "double": torch.float64,
            "integer": torch.int64,
            "mask": torch.bool,
        }
        return nest

    stage = stage_of(compute, Function(everything), Function(check), Function(check))
    (*tensors,), _ = stage.forward(0, [torch.ones(2, 3)], 0)
    assert [tensor.dtype for tensor in tensors[:2]] == [compute, compute]


@pytest.mark.parametrize("compute", TYPES)
def test_weights_and_their_gradients_stay_float32(compute: torch.dtype) -> None:
    modules = nn.Linear(4, 8), nn.Sequential(nn.LayerNorm(8), nn.GELU()), nn.Linear(8, 3)
    stage = stage_of(compute, *modules)
    (output,), _ = stage.forward(0, [torch.ones(2, 4, dtype=compute, requires_grad=True)], 0)
    (gradient,) = stage.backward(0, [torch.ones_like(output)])
    assert output.dtype is gradient.dtype is compute
    for module in modules:
        for parameter in module.parameters():
            assert parameter.dtype is parameter.grad.dtype is torch.float32


@pytest.mark.parametrize("compute", TYPES)
def test_the_loss_is_summed_in_float32(compute: torch.dtype) -> None:
    """300 + 0.5 is 300 in bfloat16, and 60,000 + 60,000 infinite in float16."""
    large = 300.0 if compute is torch.bfloat16 else 60_000.0
    scores = torch.tensor([large, 0.5, large])
    last = Function(lambda x: {"scores": x, "classes": torch.zeros(3, dtype=torch.int64)})
    stage = stage_of(compute, nn.Identity(), last, loss=Float32Sum())
    tensors, _ = stage.forward(0, [scores.requires_grad_()], 0)
    total = stage.loss_sum(0, {"scores": tensors[0], "classes": tensors[1]}, None)
    assert total.dtype is torch.float32
    assert total.item() == 2 * large + 0.5
    (gradient,) = stage.backward(0, [torch.tensor(0.5)])
    assert torch.equal(gradient, torch.full((3,), 0.5))


@pytest.mark.parametrize("compute", TYPES)
def test_a_stage_is_plain_autocast(compute: torch.dtype) -> None:
    def network() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 3, bias=False))

    mine, plain = network(), network()
    x, classes = torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
    stage = stage_of(compute, *mine, loss=F.cross_entropy)
    (output,), _ = stage.forward(0, [x], 0)
    total = stage.loss_sum(0, output, classes)
    stage.backward(0, [torch.tensor(8.0)])
    with torch.autocast("cpu", compute):
        expected = F.cross_entropy(plain(x), classes)
    (expected * 8.0).backward()
    assert torch.equal(total, expected)
    for one, other in zip(mine.parameters(), plain.parameters(), strict=True):
        assert one.grad is not None
        assert torch.equal(one.grad, other.grad)
    assert total != F.cross_entropy(plain(x), classes)  # not float32 by mistake


@pytest.mark.parametrize("schedule", ["1f1b", "zb_h1"])
@pytest.mark.parametrize("compute", TYPES)
@pytest.mark.parametrize("name", FIXTURES)
def test_no_cut_changes_a_bit(name: str, compute: torch.dtype, schedule: str) -> None:
    fixture = FIXTURES[name]
    count = len(fixture.sizes)
    layers = len(fixture.build().layers)
    whole = Pipeline(fixture.build(), [layers], precision=Precision(compute))
    cut = Pipeline(fixture.build(), [1] * layers, schedule, precision=Precision(compute))
    losses = [pipeline.train(fixture.micro_batches(), count, 0.25) for pipeline in (whole, cut)]
    assert losses[0] == losses[1]
    one, other = whole.gradients(), cut.gradients()
    for parameter, gradient in one.items():
        if gradient is not None:
            assert gradient.dtype is torch.float32
            assert torch.equal(gradient, other[parameter]), parameter
    full = Pipeline(fixture.build(), [layers])
    assert losses[0] == pytest.approx(full.train(fixture.micro_batches(), count, 0.25), rel=0.05)
    assert losses[0] != full.train(fixture.micro_batches(), count, 0.25)


@pytest.mark.parametrize("compute", TYPES)
@pytest.mark.parametrize("given", [torch.float32, None], ids=["float32 inside", "handed on"])
@pytest.mark.parametrize("shape", [(5,), (3, 7)], ids=str)
@pytest.mark.parametrize("name", ON_VECTORS)
def test_a_split_backward_has_the_bits_of_a_full_one(
    name: str, shape: tuple[int, ...], given: torch.dtype | None, compute: torch.dtype
) -> None:
    build, _ = ON_VECTORS[name]

    class Inside(nn.Module):
        """Passes float32 to its module, as a layer may, although its input has the compute type."""

        def __init__(self) -> None:
            super().__init__()
            self.module = build()

        def forward(self, x: Tensor) -> Tensor:
            return self.module(x.to(given or compute))

    found = []
    for split in (False, True):
        torch.manual_seed(0)
        stage = stage_of(compute, nn.Linear(WIDTH, WIDTH), Inside(), nn.Linear(WIDTH, WIDTH))
        back = []
        for i in range(3):
            chance = torch.Generator().manual_seed(i)
            x = torch.rand(*shape, WIDTH, generator=chance).to(compute).requires_grad_()
            (y,), _ = stage.forward(i, [x], 0, split=split)
            back += stage.backward(i, [torch.rand(y.shape, generator=chance).to(compute)])
            if split:
                stage.weight_gradients(i)
        found.append(
            [*back, *(parameter.grad for layer in stage.layers for parameter in layer.module.parameters())]
        )
    for one, other in zip(*found, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)
        assert one is None or one.dtype is other.dtype
