"""Assignment of parameters compared with every alternative; sharded optimizers, with a single one."""

from copy import deepcopy
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.support.layers import layers_of
from trainer.config.schema import AdamWConfig, GroupConfig, OptimizerConfig, SGDConfig
from trainer.distributed.waiting import WaitMeter
from trainer.optim.build import build_optimizer, state_bytes
from trainer.replication.sharding import Shards, assign_parameters


def largest_shard(sizes: list[int], shard_of: tuple[int, ...] | list[int], shards: int) -> int:
    return max(
        sum(size for size, its in zip(sizes, shard_of, strict=True) if its == shard)
        for shard in range(shards)
    )


@given(st.lists(st.integers(0, 1000), max_size=40), st.integers(1, 9))
def test_no_shard_has_more_than_its_share_and_one_parameter(sizes: list[int], shards: int) -> None:
    assignment = assign_parameters(sizes, shards)
    assert all(0 <= shard < shards for shard in assignment)
    assert largest_shard(sizes, assignment, shards) <= sum(sizes) / shards + max(sizes, default=0)


@given(st.lists(st.integers(0, 20), max_size=7), st.integers(1, 3))
def test_no_other_assignment_is_better_by_more_than_a_third(sizes: list[int], shards: int) -> None:
    """Graham's bound (1969) for largest-first assignment, compared with all assignments."""
    best = min(largest_shard(sizes, each, shards) for each in product(range(shards), repeat=len(sizes)))
    found = largest_shard(sizes, assign_parameters(sizes, shards), shards)
    assert found <= best * (4 / 3 - 1 / (3 * shards)) + 1e-9


def test_order_decides_between_equal_sizes() -> None:
    assert assign_parameters([5, 5, 5, 5, 5], 2) == [0, 1, 0, 1, 0]
    assert assign_parameters([1, 9, 4, 4], 2) == [1, 0, 1, 1]
    assert assign_parameters([2, 3], 4) == [1, 0]
    assert assign_parameters([], 3) == []


@pytest.mark.parametrize("shards", [1, 2, 3, 20])
@pytest.mark.parametrize(
    "config",
    [
        AdamWConfig(groups=[GroupConfig("layer1", lr=0.02), GroupConfig("*/bias", weight_decay=0.3)]),
        SGDConfig(momentum=0.9, weight_decay=0.1),
    ],
    ids=["adamw", "sgd"],
)
def test_shards_step_like_one_optimizer(config: OptimizerConfig, shards: int) -> None:
    """Each steps its own parameters, bit-identically; together they hold the state exactly once."""
    whole = nn.Sequential(*(nn.Linear(7, 7 + 10 * (i == 2)) for i in range(3)))
    whole[0].bias.requires_grad_(False)
    copies = [deepcopy(whole) for _ in range(shards)]
    assignment = [Shards(layers_of(*copy), shards, own, WaitMeter()) for own, copy in enumerate(copies)]
    optimizers = [
        build_optimizer(config, layers_of(*copy), shard.has)
        for copy, shard in zip(copies, assignment, strict=True)
    ]
    reference = build_optimizer(config, layers_of(*whole))
    assert reference is not None
    before = deepcopy(whole)
    for step in range(3):
        for model, optimizer in zip([whole, *copies], [reference, *optimizers], strict=True):
            chance = torch.Generator().manual_seed(step)
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=chance)
            if optimizer is not None:
                optimizer.step()

    models = before, whole, *copies
    for first, expected, *seen in zip(*(model.parameters() for model in models), strict=True):
        if expected.requires_grad:
            has = [shard.has(parameter) for shard, parameter in zip(assignment, seen, strict=True)]
            assert has.count(True) == 1
            for own, parameter in zip(has, seen, strict=True):
                assert torch.equal(parameter, expected if own else first)
    sizes = [state_bytes(optimizer) for optimizer in optimizers]
    assert sum(sizes) == state_bytes(reference)
    largest = max(state_bytes_of(reference, parameter) for parameter in whole.parameters())
    assert max(sizes) <= state_bytes(reference) / shards + largest
    assert sum(shard.own_bytes for shard in assignment) == assignment[0].bytes


def state_bytes_of(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> int:
    return sum(value.nbytes for value in optimizer.state.get(parameter, {}).values())
