"""Layer costs, compared with operations and bytes counted by hand."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.models import NoLoss
from trainer.activation import Activation
from trainer.models.model import Layer, Model
from trainer.pipeline.recomputation import Recompute
from trainer.plan.costs import FLOPS_PER_BYTE, LayerCost, layer_costs
from trainer.plan.partition import partition


def costs(inputs: Activation, *builds: Callable[[], nn.Module]) -> list[LayerCost]:
    layers = tuple(Layer(f"layer{i}", build) for i, build in enumerate(builds))
    return layer_costs(Model(layers, NoLoss()), inputs)


class Attention(nn.Module):
    """One head whose input is query, key and value."""

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(10, 20, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.lstm(x)[0]
        return output


class Split(nn.Module):
    """Turns a tensor into a nest, as a skip connection with a mask would."""

    def forward(self, x: Tensor) -> Activation:
        return {"skip": x, "nothing": None, "inner": (2 * x, x > 0)}


class Join(nn.Module):
    def forward(self, nest: dict[str, Any]) -> Tensor:
        doubled, mask = nest["inner"]
        output: Tensor = nest["skip"] + doubled * mask
        return output


class DataDependent(nn.Module):
    """The output's shape depends on the input's values."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(10, 10)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.linear(x[x[:, 0] > 0])
        return output


class ReadsItsWeights(nn.Linear):
    """Cannot be built on the meta device."""

    def __init__(self) -> None:
        super().__init__(10, 10)
        if self.weight.sum().item() == 0:
            raise ValueError("no weights")


def test_linear() -> None:
    first, second = costs(torch.empty(4, 10), partial(nn.Linear, 10, 20), partial(nn.Linear, 20, 1))
    product = 2 * 4 * 10 * 20
    assert first.outputs is not None
    assert [spec.shape for spec in first.outputs.tensors] == [(4, 20)]
    assert replace(first, outputs=None) == LayerCost(
        name="layer0",
        flops_forward=product,
        flops_backward=product,  # of the weight alone: the data needs no gradient
        moved_forward=4 * (40 + 80),  # input and output; adding the bias is part of the product
        moved_backward=4 * (40 + 80) + 3 * 4 * 220,  # and accumulating the gradients
        parameters=10 * 20 + 20,
        parameter_bytes=4 * (10 * 20 + 20),
        output_bytes=4 * 4 * 20,
        saved_bytes=dict.fromkeys(Recompute, 4 * 4 * 20),  # its output; its input belongs to the layer before
        trained=10 * 20 + 20,
        deferred=10 * 20 + 20,
        deferred_bytes=4 * 4 * (10 + 20),  # its input and the gradient of its output
        deferred_work=product + FLOPS_PER_BYTE * 4 * (80 + 20 + 3 * 220),  # the bias's sum, and accumulating
        trained_bytes={"weight": 4 * 10 * 20, "bias": 4 * 20},
    )
    assert (second.flops_forward, second.flops_backward) == (2 * 4 * 20 * 1, 2 * 2 * 4 * 20 * 1)
    assert second.forward == 160 + FLOPS_PER_BYTE * second.moved_forward
    assert second.backward == 320 + FLOPS_PER_BYTE * second.moved_backward
    assert second.cost == second.forward + second.backward


def test_convolution() -> None:
    images = torch.empty(2, 3, 8, 8)
    _, layer = costs(images, partial(nn.Conv2d, 3, 3, 1), partial(nn.Conv2d, 3, 5, 3))
    product = 2 * 2 * 5 * 6 * 6 * 3 * 3 * 3
    assert (layer.flops_forward, layer.flops_backward) == (product, 2 * product)
    assert layer.output_bytes == 4 * 2 * 5 * 6 * 6


def test_attention() -> None:
    _, layer = costs(torch.empty(2, 4, 7, 16), partial(nn.Linear, 16, 16), Attention)
    product = 2 * (2 * 4) * 7 * 7 * 16
    assert (layer.flops_forward, layer.flops_backward) == (2 * product, 4 * product)


def test_lstm() -> None:
    """Four gates, each with a product with the input and one with the state, at seven times."""
    layer = costs(torch.empty(4, 7, 10), Recurrent)[0]
    inputs, states = 2 * 4 * 7 * (10 * 80), 2 * 4 * 7 * (20 * 80)
    assert layer.flops_forward == inputs + states
    # The weights' gradients, and the state's at every time but the first, which needs none.
    assert layer.flops_backward == inputs + 2 * states - 2 * 4 * (20 * 80)


X = 4 * 4 * 10  # the bytes of [4, 10]
FLOATS = torch.empty(4, 10, requires_grad=True)  # as if a layer before it were trained
TOKENS = torch.zeros(2, 16, dtype=torch.int64)


@pytest.mark.parametrize(
    ("build", "inputs", "forward"),
    [
        (nn.ReLU, FLOATS, 2 * X),
        (nn.Identity, FLOATS, 2 * X),
        (nn.Softplus, FLOATS, 2 * X),
        (partial(nn.LayerNorm, 10), FLOATS, 2 * X + 4 * (2 * 10 + 2 * 4)),  # and weights, means, deviations
        (partial(nn.Embedding, 50_000, 32), TOKENS, 2 * 4 * 2 * 16 * 32),  # not the table
    ],
)
def test_layers_without_products_cost_their_bytes(
    build: Callable[[], nn.Module], inputs: Tensor, forward: int
) -> None:
    layer = costs(inputs, build)[0]
    assert (layer.flops_forward, layer.flops_backward, layer.warning) == (0, 0, None)
    assert layer.moved_forward == forward
    assert layer.moved_backward >= inputs.nbytes + layer.output_bytes + 3 * layer.parameter_bytes
    assert layer.cost == FLOPS_PER_BYTE * (layer.moved_forward + layer.moved_backward)


def test_no_backward_where_nothing_requires_gradients() -> None:
    relu, linear, last = costs(torch.empty(4, 10), nn.ReLU, partial(nn.Linear, 10, 10), nn.ReLU)
    assert (relu.backward, relu.moved_forward) == (0, 2 * X)
    assert linear.flops_backward == 2 * 4 * 10 * 10  # the first layer's output needs no gradient
    assert last.moved_backward >= 2 * X


def test_saved_bytes_count_shared_memory_once() -> None:
    class TwoUses(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.exp() * x.view(10, 4).t().reshape(4, 10).exp()  # each result is saved, and the product

    _, layer = costs(torch.empty(4, 10), partial(nn.Linear, 10, 10), TwoUses)
    assert layer.saved_bytes[Recompute.NONE] == 3 * 4 * 4 * 10
    assert layer.saved_bytes[Recompute.FULL] == 4 * 4 * 10  # its output


def test_nested_activations() -> None:
    split, join, last = costs(torch.empty(4, 10), Split, Join, partial(nn.Linear, 10, 1))
    assert split.output_bytes == 2 * 160 + 40
    assert join.output_bytes == 160
    assert last.flops_forward == 2 * 4 * 10
    assert all(layer.warning is None for layer in (split, join, last))


def test_a_small_data_dependent_layer_is_counted_on_an_example() -> None:
    layer, following = costs(torch.ones(4, 10), DataDependent, partial(nn.Linear, 10, 1))
    assert (layer.flops_forward, layer.flops_backward) == (2 * 4 * 100, 2 * 4 * 100)
    assert layer.dynamic
    assert layer.warning is not None
    assert "counted on one example: does not run on the meta device" in layer.warning
    assert (following.warning, following.dynamic) == (None, False)
    assert following.flops_forward == 2 * 4 * 10


def test_a_large_data_dependent_layer_is_guessed() -> None:
    layer = costs(torch.ones(1, 10).expand(10**8, 10), DataDependent)[0]
    assert (layer.flops_forward, layer.flops_backward) == (2 * 10**8 * 110, 4 * 10**8 * 110)
    assert layer.warning is not None
    assert "guessed from the parameters: does not run on the meta device" in layer.warning


def test_a_layer_that_reads_its_weights_is_built_briefly_and_leaves_the_seed_alone() -> None:
    before = torch.get_rng_state()
    layer = costs(torch.empty(4, 10), ReadsItsWeights)[0]
    assert (layer.flops_forward, layer.warning) == (2 * 4 * 10 * 10, None)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_layer_that_cannot_be_built_raises_its_own_error() -> None:
    def broken() -> nn.Module:
        raise RuntimeError("no such file")

    with pytest.raises(RuntimeError, match="no such file"):
        costs(torch.empty(4, 10), broken)


def test_layers_that_share_a_build_keep_their_names_and_see_their_own_inputs() -> None:
    build = partial(nn.Linear, 10, 10)
    layers = costs(torch.empty(4, 10), build, build, build)
    assert [layer.name for layer in layers] == ["layer0", "layer1", "layer2"]
    assert [layer.flops_backward for layer in layers] == [800, 1600, 1600]  # only the first takes data


def test_a_model_larger_than_any_host() -> None:
    """Ten layers of 40 GB each."""
    layers = costs(torch.empty(1, 100_000), *[partial(nn.Linear, 100_000, 100_000)] * 10)
    assert sum(layer.parameter_bytes for layer in layers) > 400e9
    assert partition([layer.cost for layer in layers], 2) == (5,)


def test_half_precision_halves_saved_and_sent_bytes_but_not_the_weights() -> None:
    layers = (Layer("tokens", partial(nn.Embedding, 50, 32)), Layer("linear", partial(nn.Linear, 32, 8)))
    model = Model(layers, NoLoss())
    full, half = layer_costs(model, TOKENS), layer_costs(model, TOKENS, torch.bfloat16)
    assert [cost.output_bytes for cost in half] == [2 * 32 * 32, 2 * 32 * 8]
    assert half[1].deferred_bytes == 2 * 32 * (32 + 8)  # its input and the gradient of its output
    for one, other in zip(full, half, strict=True):
        assert other.warning is None
        assert other.output_bytes * 2 == one.output_bytes
        assert (other.flops_forward, other.flops_backward) == (one.flops_forward, one.flops_backward)
        assert (other.parameters, other.parameter_bytes) == (one.parameters, one.parameter_bytes)
        assert other.cost < one.cost


def test_a_layer_that_relies_on_float32_is_costed_in_float32() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(10, 10))

        def forward(self, x: Tensor) -> Tensor:
            return x.float() @ self.weight  # autocast would convert both

    model = Model((Layer("counts", Counts),), NoLoss())
    (half,) = layer_costs(model, torch.empty(4, 10), torch.float16)
    assert (half.flops_forward, half.warning) == (2 * 4 * 10 * 10, None)
