"""Iterable datasets: samples by number, whatever was skipped; positions; and what is refused."""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import IterableDataset, TensorDataset

from trainer.config.schema import CustomDataConfig
from trainer.data.custom import load
from trainer.data.order import order_of
from trainer.errors import TrainingError, UserError


class Endless(IterableDataset):  # type: ignore[type-arg]
    """Items that draw random numbers while the stream goes on."""

    read = 0

    def items(self, number: int) -> Iterator[Any]:
        while True:
            Endless.read += 1
            yield torch.full((2,), float(number)), torch.tensor(number) + 1000 * random.randrange(1000)
            number += 1

    def __iter__(self) -> Iterator[Any]:
        return self.items(0)


class Seeking(Endless):
    def start(self, position: int) -> Iterator[Any]:
        return self.items(position)


class Sized(IterableDataset):  # type: ignore[type-arg]
    """Five items, other ones in every pass."""

    epoch = 0

    def __init__(self, length: int = 5) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        for number in range(5):
            yield torch.tensor(100 * self.epoch + number), torch.tensor(0)


class Ending(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Iterator[Any]:
        yield from ((torch.tensor(i), torch.tensor(i)) for i in range(20))


def too_long() -> Sized:
    return Sized(7)


def with_validation() -> Any:
    return Seeking(), TensorDataset(torch.arange(4.0), torch.arange(4))


def with_endless_validation() -> Any:
    return Endless(), Endless()


def data(name: str) -> Any:
    return load(CustomDataConfig(target=f"tests.test_stream:{name}"))


@pytest.mark.parametrize("name", ["Endless", "Seeking"])
def test_a_sample_depends_on_its_number_alone(name: str) -> None:
    """Not on which others were read before: other ranks read other micro-batches."""
    torch.manual_seed(1)
    part = data(name).training
    assert order_of(part, 0).samples(7, 3).tolist() == [7, 8, 9]
    whole = part.targets(np.arange(12))
    assert (whole % 1000).tolist() == list(range(12))
    for chosen in ([3, 4], [8, 9], [2], [11]):
        random.seed(len(chosen))
        assert torch.equal(part.targets(np.array(chosen)), whole[chosen])


def test_a_position_is_not_a_replay() -> None:
    part = data("Seeking").training
    before = Endless.read
    assert part.inputs(np.array([1_000_000]))[0, 0] == 1_000_000
    assert Endless.read == before + 1


def test_a_position_without_help_is_reached_by_iterating() -> None:
    made = data("Endless")
    assert "has no method start(position)" in made.notes[0]
    assert data("Seeking").notes == ()
    before = Endless.read
    assert made.training.inputs(np.array([12_000]))[0, 0] == 12_000
    assert before + 11_990 < Endless.read <= before + 12_001  # the first were read at the start


def test_a_stream_with_a_length_begins_again() -> None:
    part = data("Sized").training
    assert len(part) == 5
    assert part.inputs(np.array([3, 4, 5, 6])).tolist() == [3, 4, 100, 101]
    assert part.inputs(np.array([17])).tolist() == [302]


def test_the_second_dataset_validates() -> None:
    assert len(data("with_validation").validation) == 4
    assert len(data("Endless").validation) == 0
    with pytest.raises(UserError, match="a stream without a length to validate"):
        data("with_endless_validation")


def test_a_stream_that_ends() -> None:
    with pytest.raises(TrainingError, match=r"ended after 20 items: let it begin again by itself"):
        data("Ending").training.inputs(np.array([20]))
    with pytest.raises(TrainingError, match=r"ended after 5 items, though its length is 7"):
        data("too_long").training.inputs(np.array([6]))
