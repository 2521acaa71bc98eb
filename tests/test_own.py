"""Layers whose `build` returns a module that exists already."""

import threading

import torch
from torch import nn

from trainer.models.model import Layer, Tie
from trainer.models.own import build_own
from trainer.pipeline.build import build_layer

CPU = torch.device("cpu")


def test_an_existing_module_is_copied_and_keeps_its_values() -> None:
    existing = nn.BatchNorm1d(6)
    built = build_layer([Layer("norm", lambda: existing)], 0, 1, CPU).module
    assert built is not existing
    with torch.no_grad():
        built.weight.fill_(7)  # type: ignore[operator, union-attr]
        built.running_mean.fill_(7)  # type: ignore[operator, union-attr]
    again = build_layer([Layer("norm", lambda: existing)], 0, 1, CPU).module
    for name, value in nn.BatchNorm1d(6).state_dict().items():
        assert torch.equal(existing.state_dict()[name], value)
        assert torch.equal(again.state_dict()[name], value)


def test_a_new_module_is_not_copied() -> None:
    made: list[nn.Module] = []

    def build() -> nn.Module:
        made.append(nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)), nn.BatchNorm1d(6)))
        return made[-1]

    assert build_own(build) is made[0]
    assert build_own(nn.Tanh).state_dict() == {}


def test_a_module_that_cannot_be_copied_is_used_as_it_is() -> None:
    existing = nn.Linear(6, 6)
    existing.lock = threading.Lock()  # type: ignore[assignment]
    assert build_own(lambda: existing) is existing


def test_existing_modules_that_share_a_weight_are_tied_copies() -> None:
    first, last = nn.Linear(6, 6), nn.Linear(6, 6)
    last.weight = first.weight
    layers = [
        Layer("first", lambda: first),
        Layer("last", lambda: last, ties=(Tie("weight", "first", "weight"),)),
    ]
    owner, use = (build_layer(layers, index, 1, CPU).module for index in range(2))
    assert torch.equal(owner.weight, use.weight)  # type: ignore[arg-type]
    assert owner.weight is not use.weight


def test_ties_of_compiled_layers_use_plain_names() -> None:
    layers = [
        Layer("first", lambda: torch.compile(nn.Linear(6, 6), backend="eager")),
        Layer("last", lambda: nn.Linear(6, 6), ties=(Tie("weight", "first", "weight"),)),
    ]
    owner, use = (build_layer(layers, index, 1, CPU) for index in range(2))
    assert [name for name, _ in owner.owned()] == ["weight", "bias"]
    assert torch.equal(dict(owner.owned())["weight"], use.module.weight)  # type: ignore[arg-type]
