"""Learning rates compared with closed formulas, clipping with torch's; weight decay where it belongs."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.support.layers import layers_of
from trainer.config.schema import (
    AdamWConfig,
    CustomOptimizerConfig,
    GroupConfig,
    LRScheduleConfig,
    OptimizerConfig,
    SGDConfig,
)
from trainer.errors import UserError
from trainer.models.model import Layer, Model, Tie
from trainer.models.simplenet import BinaryLoss
from trainer.optim.build import build_optimizer, check_groups
from trainer.optim.gradients import all_gradients, clear_gradients, clip, global_norm, gradient_norms
from trainer.optim.learning_rate import learning_rate, set_learning_rates
from trainer.pipeline.layer import BuiltLayer

PEAK = 0.3


def rates(rate: LRScheduleConfig, steps: int) -> list[float]:
    return [learning_rate(PEAK, rate, step, steps) for step in range(1, steps + 1)]


def test_constant() -> None:
    assert rates(LRScheduleConfig("constant"), 5) == [PEAK] * 5


@pytest.mark.parametrize("name", ["constant", "cosine", "linear"])
def test_warmup_grows_evenly_to_the_peak(name: str) -> None:
    assert rates(LRScheduleConfig(name, warmup=4), 10)[:4] == pytest.approx(
        [PEAK * i / 4 for i in (1, 2, 3, 4)]
    )


def test_linear_falls_evenly_to_the_final_share() -> None:
    expected = [PEAK * (1 - 0.75 * i / 8) for i in range(1, 9)]
    assert rates(LRScheduleConfig("linear", warmup=2, final=0.25), 10)[2:] == pytest.approx(expected)


def test_cosine_falls_to_the_final_share() -> None:
    found = rates(LRScheduleConfig("cosine", warmup=2, final=0.25), 10)
    assert found[-1] == pytest.approx(PEAK / 4)
    assert found[5] == pytest.approx(PEAK * (1 + 0.25) / 2)  # half way
    expected = [PEAK * (0.25 + 0.75 * math.cos(math.pi * i / 16) ** 2) for i in range(1, 9)]
    assert found[2:] == pytest.approx(expected)


def test_cosine_matches_torch() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=PEAK)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    expected = []
    for _ in range(10):
        optimizer.step()
        scheduler.step()
        expected.append(scheduler.get_last_lr()[0])
    assert rates(LRScheduleConfig("cosine"), 10) == pytest.approx(expected)


@given(
    st.sampled_from(["constant", "cosine", "linear"]),
    st.integers(0, 30),
    st.floats(0, 1),
    st.integers(1, 30),
)
def test_rates_are_between_zero_and_the_peak(name: str, warmup: int, final: float, steps: int) -> None:
    for rate in rates(LRScheduleConfig(name, warmup, final), steps):
        assert 0 <= rate <= PEAK * (1 + 1e-12)


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
def test_optimizers_match_torch(config: OptimizerConfig, reference: object) -> None:
    mine, theirs = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    theirs.load_state_dict(mine.state_dict())
    optimizers = build_optimizer(config, layers_of(mine)), reference(theirs.parameters())
    for _ in range(3):
        for module, optimizer in zip((mine, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            module(torch.eye(3)).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(mine.weight, theirs.weight)


GROUPS = [
    GroupConfig("layer0/bias", weight_decay=0.3),
    GroupConfig("layer0", lr=0.02),  # its bias matched an earlier group
    GroupConfig("*/*bias", lr=0.03, weight_decay=0.0),
    GroupConfig("layer2", lr=0.0),  # its bias matched an earlier group too
    GroupConfig("layer3"),  # as without the group
]


@pytest.mark.parametrize(
    ("config", "reference"),
    [
        pytest.param(
            AdamWConfig(lr=0.1, weight_decay=0.2, beta1=0.8, beta2=0.9, epsilon=1e-6),
            lambda groups: torch.optim.AdamW(groups, betas=(0.8, 0.9), eps=1e-6),
            id="adamw",
        ),
        pytest.param(
            SGDConfig(lr=0.1, weight_decay=0.2, momentum=0.9),
            lambda groups: torch.optim.SGD(groups, momentum=0.9),
            id="sgd",
        ),
        pytest.param(
            CustomOptimizerConfig(
                target="torch.optim:RMSprop", lr=0.1, weight_decay=0.2, options={"alpha": 0.9}
            ),
            lambda groups: torch.optim.RMSprop(groups, alpha=0.9),
            id="custom",
        ),
    ],
)
def test_groups_match_torch(config: OptimizerConfig, reference: Callable[..., torch.optim.Optimizer]) -> None:
    """Each group's rate warms up and decays, as with explicit groups and torch's scheduler."""
    config.groups, config.lr_schedule = GROUPS, LRScheduleConfig("linear", warmup=2)
    steps = 6
    mine, theirs = (nn.Sequential(*(nn.Linear(3, 3) for _ in range(4))) for _ in range(2))
    theirs.load_state_dict(mine.state_dict())
    weights, biases = [part.weight for part in theirs], [part.bias for part in theirs]
    plain = reference(
        [
            {"params": biases[0], "lr": 0.1, "weight_decay": 0.3},
            {"params": weights[0], "lr": 0.02, "weight_decay": 0.2},
            {"params": biases[1:], "lr": 0.03, "weight_decay": 0.0},
            {"params": weights[2], "lr": 0.0, "weight_decay": 0.2},
            {"params": [weights[1], weights[3]], "lr": 0.1, "weight_decay": 0.2},
        ]
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(plain, lambda done: [0.5, 1, 0.75, 0.5, 0.25, 0, 0][done])
    optimizer = build_optimizer(config, layers_of(*mine))
    assert optimizer is not None
    for step in range(1, steps + 1):
        for network in (mine, theirs):
            network.zero_grad()
            network(torch.arange(9.0).reshape(3, 3).sin()).square().sum().backward()
        set_learning_rates(optimizer, config.lr_schedule, step, steps)
        optimizer.step()
        plain.step()
        scheduler.step()
        for ours, other in zip(mine.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(ours, other)


def test_a_tied_parameter_is_in_its_owner_s_group() -> None:
    owner, use = nn.Linear(2, 2), nn.Linear(2, 2)
    layers = [
        BuiltLayer(0, "owner", owner),
        BuiltLayer(1, "use", use, (Tie("weight", "owner", "weight"),)),
    ]
    groups = [GroupConfig("use", lr=0.2), GroupConfig("owner", lr=0.1)]
    for held in (layers, layers[1:]):  # a rank may hold only the use
        optimizer = build_optimizer(AdamWConfig(groups=groups), held)
        assert optimizer is not None
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        assert rates[id(use.weight)] == 0.1
        assert rates[id(use.bias)] == 0.2
        assert rates.get(id(owner.weight), 0.1) == 0.1


def test_groups_that_match_nothing() -> None:
    ties = (Tie("weight", "first", "weight"),)
    layers = (Layer("first", lambda: nn.Linear(2, 2)), Layer("last", lambda: nn.Linear(2, 2), ties))
    model = Model(layers, BinaryLoss())
    check_groups([GroupConfig("first"), GroupConfig("last"), GroupConfig("*/weight")], model)
    with pytest.raises(UserError, match=r"optimizer\.groups\.1\.match: 'lst' matches no .*mean last\?"):
        check_groups([GroupConfig("first"), GroupConfig("lst")], model)
    with pytest.raises(UserError, match=r"optimizer\.groups\.0\.match: .*tied to first/weight"):
        check_groups([GroupConfig("last/weight")], model)


@pytest.mark.parametrize("largest", [0.5, 2.0, 1e6, None])
def test_clipping_matches_torch(largest: float | None) -> None:
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


def test_a_rank_with_nothing_to_train_clips_nothing() -> None:
    clip(all_gradients(layers_of(nn.ReLU())), 2.0, 1.0)


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


def test_norm_does_not_depend_on_the_cut() -> None:
    layers = with_gradients(*(nn.Linear(5, 5) for _ in range(4)))
    whole = gradient_norms(layers)
    assert [*gradient_norms(layers[:1]), *gradient_norms(layers[1:])] == whole.tolist()
    assert global_norm(gradient_norms([])) == 0.0


def test_clear() -> None:
    layers = with_gradients(nn.Linear(2, 2))
    clear_gradients(layers)
    assert all_gradients(layers) == []
