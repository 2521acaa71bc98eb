"""Learning rates against closed formulas, clipping against torch's, decay where it belongs."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from trainer.config import (
    AdamWConfig,
    CustomOptimizerConfig,
    OptimizerConfig,
    RateConfig,
    SGDConfig,
)
from trainer.models.model import Tie
from trainer.optimization import (
    all_gradients,
    build_optimizer,
    clear_gradients,
    clip,
    global_norm,
    gradient_norms,
    learning_rate,
)
from trainer.pipeline.stage import BuiltLayer

PEAK = 0.3


def rates(rate: RateConfig, steps: int) -> list[float]:
    return [learning_rate(PEAK, rate, step, steps) for step in range(1, steps + 1)]


def test_constant() -> None:
    assert rates(RateConfig("constant"), 5) == [PEAK] * 5


@pytest.mark.parametrize("name", ["constant", "cosine", "linear"])
def test_warmup_grows_evenly_to_the_peak(name: str) -> None:
    assert rates(RateConfig(name, warmup=4), 10)[:4] == pytest.approx([PEAK * i / 4 for i in (1, 2, 3, 4)])


def test_linear_falls_evenly_to_the_final_share() -> None:
    expected = [PEAK * (1 - 0.75 * i / 8) for i in range(1, 9)]
    assert rates(RateConfig("linear", warmup=2, final=0.25), 10)[2:] == pytest.approx(expected)


def test_cosine_falls_to_the_final_share() -> None:
    found = rates(RateConfig("cosine", warmup=2, final=0.25), 10)
    assert found[-1] == pytest.approx(PEAK / 4)
    assert found[5] == pytest.approx(PEAK * (1 + 0.25) / 2)  # half way
    expected = [PEAK * (0.25 + 0.75 * math.cos(math.pi * i / 16) ** 2) for i in range(1, 9)]
    assert found[2:] == pytest.approx(expected)


def test_cosine_is_torch_s() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=PEAK)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    expected = []
    for _ in range(10):
        optimizer.step()
        scheduler.step()
        expected.append(scheduler.get_last_lr()[0])
    assert rates(RateConfig("cosine"), 10) == pytest.approx(expected)


@given(
    st.sampled_from(["constant", "cosine", "linear"]),
    st.integers(0, 30),
    st.floats(0, 1),
    st.integers(1, 30),
)
def test_never_beyond_the_peak_nor_below_nothing(name: str, warmup: int, final: float, steps: int) -> None:
    for rate in rates(RateConfig(name, warmup, final), steps):
        assert 0 <= rate <= PEAK * (1 + 1e-12)


def layers_of(*modules: nn.Module) -> list[BuiltLayer]:
    return [BuiltLayer(i, f"layer{i}", module) for i, module in enumerate(modules)]


def with_gradients(*modules: nn.Module) -> list[BuiltLayer]:
    chance = torch.Generator().manual_seed(0)
    for module in modules:
        for parameter in module.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=chance)
    return layers_of(*modules)


def test_no_decay_on_biases_and_norms() -> None:
    frozen = nn.Linear(2, 2).requires_grad_(False)
    linear, norm, embedding = nn.Linear(2, 3), nn.LayerNorm(3), nn.Embedding(5, 3)
    optimizer = build_optimizer(AdamWConfig(weight_decay=0.1), layers_of(linear, norm, frozen, embedding))
    assert optimizer is not None
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay == {
        id(linear.weight): 0.1,
        id(embedding.weight): 0.1,
        id(linear.bias): 0.0,
        id(norm.weight): 0.0,
        id(norm.bias): 0.0,
    }


def test_nothing_to_train() -> None:
    assert build_optimizer(AdamWConfig(), layers_of(nn.ReLU(), nn.Linear(2, 2).requires_grad_(False))) is None


@pytest.mark.parametrize(
    ("config", "reference"),
    [
        pytest.param(
            AdamWConfig(lr=0.1, weight_decay=0.2, beta1=0.8, beta2=0.9, epsilon=1e-6),
            lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.2, betas=(0.8, 0.9), eps=1e-6),
            id="adamw",
        ),
        pytest.param(
            SGDConfig(lr=0.1, weight_decay=0.2, momentum=0.9, nesterov=True),
            lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.2, momentum=0.9, nesterov=True),
            id="sgd",
        ),
        pytest.param(
            CustomOptimizerConfig(
                target="torch.optim:RMSprop", lr=0.1, weight_decay=0.2, options={"alpha": 0.9}
            ),
            lambda p: torch.optim.RMSprop(p, lr=0.1, weight_decay=0.2, alpha=0.9),
            id="custom",
        ),
    ],
)
def test_optimizers_are_torch_s(config: OptimizerConfig, reference: object) -> None:
    mine, theirs = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    theirs.load_state_dict(mine.state_dict())
    optimizers = build_optimizer(config, layers_of(mine)), reference(theirs.parameters())
    for _ in range(3):
        for module, optimizer in zip((mine, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            module(torch.eye(3)).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(mine.weight, theirs.weight)


@pytest.mark.parametrize("largest", [0.5, 2.0, 1e6, None])
def test_clipping_is_torch_s(largest: float | None) -> None:
    modules = nn.Linear(4, 4), nn.LayerNorm(4)
    layers = with_gradients(*modules)
    parameters = [p for module in modules for p in module.parameters()]
    copies = [p.detach().clone().requires_grad_() for p in parameters]
    for copy, parameter in zip(copies, parameters, strict=True):
        copy.grad = parameter.grad.clone()
    expected = float(nn.utils.clip_grad_norm_(copies, largest if largest is not None else math.inf))
    norm = global_norm(gradient_norms(layers))
    clip(all_gradients(layers), norm, largest)
    assert norm == pytest.approx(expected, rel=1e-6)
    for copy, parameter in zip(copies, parameters, strict=True):
        torch.testing.assert_close(parameter.grad, copy.grad, rtol=1e-5, atol=0)


def test_a_tied_parameter_counts_once_and_is_clipped_everywhere() -> None:
    owner, use = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    layers = [
        BuiltLayer(0, "owner", owner),
        BuiltLayer(1, "use", use, (Tie("weight", "owner", "weight"),)),
    ]
    for module in (owner, use):
        module.weight.grad = torch.full((2, 2), 2.0)
    assert global_norm(gradient_norms(layers)) == pytest.approx(4.0)
    clip(all_gradients(layers), 4.0, 1.0)
    assert torch.equal(owner.weight.grad, torch.full((2, 2), 0.5))
    assert torch.equal(use.weight.grad, torch.full((2, 2), 0.5))


def test_norm_does_not_hang_on_the_cut() -> None:
    layers = with_gradients(*(nn.Linear(5, 5) for _ in range(4)))
    whole = gradient_norms(layers)
    assert [*gradient_norms(layers[:1]), *gradient_norms(layers[1:])] == whole.tolist()
    assert global_norm(gradient_norms([])) == 0.0


def test_clear() -> None:
    layers = with_gradients(nn.Linear(2, 2))
    clear_gradients(layers)
    assert all_gradients(layers) == []
