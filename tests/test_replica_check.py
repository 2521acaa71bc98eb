"""Replicas and ties that differ are found, whatever differs."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.thread_ranks import ThreadRank, on_ranks
from trainer.distributed.world import Groups
from trainer.errors import TrainingError, UserError
from trainer.models.model import Tie
from trainer.pipeline.layer import BuiltLayer
from trainer.replication.check import check_equal, check_initial


class Rank(ThreadRank):
    """A rank that gathers vectors too."""

    @classmethod
    def of(cls, rank: ThreadRank) -> "Rank":
        made = cls(rank.rank, rank.local_rank, rank._exchange)
        made.size = rank._exchange.size  # type: ignore[attr-defined]
        return made

    def all_gather(self, values: Any, counts: list[int]) -> Any:
        return np.concatenate(self.all_gather_objects(values))


class Alone:
    size = 1

    def all_gather_objects(self, value: Any) -> list[Any]:
        return [value]


def module(**changes: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    made.register_buffer("order", torch.arange(6))
    made.register_buffer("wave", torch.ones(2, dtype=torch.complex64))
    made.register_parameter("small", nn.Parameter(torch.ones(2, dtype=torch.bfloat16)))
    for name, change in changes.items():
        tensor = dict([*made.named_parameters(), *made.named_buffers()])[name.replace("__", ".")]
        with torch.no_grad():
            tensor.copy_(change(tensor))
    return made


def differing(check: Callable[[list[BuiltLayer], Rank], None], **changes: Any) -> list[Any]:
    """Return what two replicas say, the second of which is changed."""

    modules = [module(), module(**changes)]
    return on_ranks(lambda rank: check([BuiltLayer(0, "odd", modules[rank.rank])], Rank.of(rank)))


def initially(layers: list[BuiltLayer], rank: Rank) -> None:
    check_initial(layers, Groups(Alone(), rank))  # type: ignore[arg-type]


def later(layers: list[BuiltLayer], rank: Rank) -> None:
    check_equal(layers, rank, 7)  # type: ignore[arg-type]


CHANGES = [
    ("0__weight", lambda tensor: tensor.index_fill(0, torch.tensor([1]), 0.5)),
    ("0__bias", lambda tensor: torch.nextafter(tensor, torch.tensor(9.0))),
    ("small", lambda tensor: tensor * 2),
]
BUFFERS = [
    ("1__running_mean", lambda tensor: tensor + 1e-7),
    ("order", lambda tensor: tensor.flip(0)),
    ("wave", lambda tensor: tensor.conj() * 1j),
]


def test_equal_replicas() -> None:
    assert differing(initially) == [None, None]
    assert differing(later) == [None, None]


@pytest.mark.parametrize(("name", "change"), CHANGES + BUFFERS, ids=lambda each: str(each)[:12])
def test_replicas_that_begin_apart(name: str, change: Any) -> None:
    words = f"begin with different weights: odd/{name.replace('__', '.')} differs between"
    for error in differing(initially, **{name: change}):
        assert isinstance(error, UserError)
        assert words in str(error)


@pytest.mark.parametrize(("name", "change"), CHANGES, ids=lambda each: str(each)[:12])
def test_replicas_that_drift_apart(name: str, change: Any) -> None:
    for error in differing(later, **{name: change}):
        assert isinstance(error, TrainingError)
        assert f"after step 7: odd/{name.replace('__', '.')} differs between" in str(error)


@pytest.mark.parametrize("apart", [False, True])
def test_a_tie_that_begins_apart(apart: bool) -> None:
    owner, use = nn.Embedding(4, 3), nn.Linear(3, 4)
    with torch.no_grad():
        use.weight.copy_(owner.weight * (2 if apart else 1))
    owned = BuiltLayer(0, "tokens", owner)
    used = BuiltLayer(1, "head", use, (Tie("weight", "tokens", "weight"),))

    def run(rank: ThreadRank) -> None:
        check_initial([used if rank.rank else owned], Groups(Rank.of(rank), Alone()))  # type: ignore[arg-type]

    found = on_ranks(run)
    if apart:
        words = "head/weight does not begin with the weights of tokens/weight"
        assert all(words in str(each) for each in found)
    else:
        assert found == [None, None]
