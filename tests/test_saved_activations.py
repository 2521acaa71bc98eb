"""Tensors that layers and losses save: bytes predicted on the meta device, compared with real ones."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.activation import Activation, flatten, unflatten
from trainer.models.gpt import Block, Head, TokenLoss
from trainer.models.model import Layer, Loss, Model
from trainer.pipeline.build import build_layer
from trainer.pipeline.precision import Precision
from trainer.pipeline.randomness import Randomness
from trainer.pipeline.recomputation import Recompute
from trainer.pipeline.stage import Stage
from trainer.pipeline.tensor_bytes import LiveBytes
from trainer.plan.costs import layer_costs

CPU = torch.device("cpu")
WIDTH, VOCABULARY = 32, 500
X = torch.randn(2, 24, WIDTH, requires_grad=True)
TOKENS = torch.randint(0, WIDTH, (2, 24))


class Attention(nn.Module):
    """Attention with a mask."""

    mask: Tensor

    def __init__(self, dtype: torch.dtype, dropout: float) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones(24, 24).tril().to(dtype))
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        heads = x.view(2, 24, 4, 8).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(heads, heads, heads, self.mask, self.dropout)
        return mixed.transpose(1, 2).flatten(2)


class SquaresOfNumbers:
    """Reads values, which meta tensors do not have."""

    def count(self, target: Activation) -> int:
        return 1

    def __call__(self, output: Activation, target: Activation) -> Tensor:
        assert isinstance(output, Tensor)
        assert output.sum().item() < float("inf")
        return output.square().sum()


def model(*builds: Callable[[], nn.Module], loss: Loss) -> Model:
    return Model(tuple(Layer(f"layer{i}", build) for i, build in enumerate(builds)), loss)


def held(
    of: Model,
    compute: torch.dtype = torch.float32,
    recompute: Recompute = Recompute.NONE,
) -> int:
    """Return the bytes that a stage holds between a micro-batch's forward and backward."""
    layers = [build_layer(of.layers, i, 0, CPU) for i in range(len(of.layers))]
    stage = Stage(
        0,
        layers,
        CPU,
        loss=of.loss,
        randomness=Randomness(0),
        on_layer_done=lambda: None,
        recompute=[recompute] * len(layers),
        precision=Precision(compute),
    )
    stage.train(True)
    _forward(stage, 0)  # a first forward copies what it may write into
    with LiveBytes() as live:
        _forward(stage, 1)
        return live.bytes


def _forward(stage: Stage, micro_batch: int) -> None:
    tensors, nest = stage.forward(micro_batch, [X], 0)
    stage.loss_sum(micro_batch, unflatten(tensors, nest), TOKENS)


def predicted(of: Model, compute: torch.dtype = torch.float32, recompute: Recompute = Recompute.NONE) -> int:
    return sum(cost.saved_bytes[recompute] for cost in layer_costs(of, X, compute, TOKENS))


@pytest.mark.parametrize("recompute", Recompute, ids=lambda mode: mode.value)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_gpt(dropout: float, recompute: Recompute) -> None:
    block = partial(Block, width=WIDTH, heads=4, dropout=dropout, rotary=False, blocks=2)
    head = partial(Head, vocabulary=VOCABULARY, width=WIDTH)
    gpt = model(block, block, head, loss=TokenLoss())
    assert held(gpt, recompute=recompute) == pytest.approx(predicted(gpt, recompute=recompute), abs=64)


@pytest.mark.parametrize("recompute", Recompute, ids=lambda mode: mode.value)
def test_products_modified_in_place(recompute: Recompute) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(inplace=True), nn.Linear(WIDTH, WIDTH))

    of = model(build, build, loss=TokenLoss())
    assert held(of, recompute=recompute) == pytest.approx(predicted(of, recompute=recompute), abs=64)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_attention_with_a_mask(dtype: torch.dtype, dropout: float) -> None:
    of = model(partial(Attention, dtype, dropout), loss=TokenLoss())
    assert held(of) == pytest.approx(predicted(of), abs=64)


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_a_loss(compute: torch.dtype) -> None:
    """Its input in float32, whatever type layers compute in, and the log-probabilities."""
    of = model(nn.Tanh, loss=TokenLoss())
    output = X.numel() * compute.itemsize
    converted = 0 if compute is torch.float32 else 4 * X.numel()
    assert predicted(of, compute) == pytest.approx(output + converted + 4 * X.numel(), abs=64)
    if compute is torch.float32:
        assert held(of, compute) == pytest.approx(predicted(of, compute), abs=64)


def test_a_loss_that_reads_values_counts_nothing() -> None:
    of = model(nn.Tanh, loss=SquaresOfNumbers())
    assert predicted(of) == 4 * X.numel()
    assert held(of) == pytest.approx(4 * X.numel(), abs=64)


def test_targets_may_nest() -> None:
    class Nested(TokenLoss):
        def __call__(self, output: Activation, target: Activation) -> Tensor:
            assert isinstance(target, dict)
            return super().__call__(output, target["tokens"])

    of = model(nn.Tanh, loss=Nested())
    targets, nest = flatten({"tokens": TOKENS, "nothing": None})
    costs = layer_costs(of, X, targets=unflatten(targets, nest))
    assert costs[-1].saved_bytes[Recompute.NONE] == pytest.approx(8 * X.numel(), abs=64)
