"""All ranks read the same samples, and the same ones every time, or the run is refused."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.configs import valid
from tests.support.thread_ranks import ThreadRank, on_ranks
from trainer.data.dataset import Data
from trainer.errors import UserError
from trainer.pipeline.data_check import check_data

X = np.arange(40.0).reshape(20, 2)


class Samples:
    def __init__(
        self,
        inputs: Callable[[Any], Any] = lambda numbers: X[numbers],
        targets: Callable[[Any], Any] = lambda numbers: torch.from_numpy(X[numbers]),
        length: int = 20,
    ) -> None:
        self.inputs, self.targets, self._length = inputs, targets, length

    def __len__(self) -> int:
        return self._length


def checked(make: Callable[[int], tuple[Any, Any]]) -> list[Any]:
    """Return what two ranks say to their training and validation samples."""
    config = valid()
    config.batch.micro_size = 4

    def check(rank: ThreadRank) -> None:
        check_data(Data(*make(rank.rank), "data"), config, rank)  # type: ignore[arg-type]

    return on_ranks(check)


def refusal(make: Callable[[int], tuple[Any, Any]]) -> str:
    found = checked(make)
    assert all(isinstance(each, UserError) for each in found), found
    assert len({str(each) for each in found}) == 1
    return str(found[0])


def test_equal_data() -> None:
    assert checked(lambda rank: (Samples(), Samples())) == [None, None]


def test_lengths() -> None:
    words = refusal(lambda rank: (Samples(length=20 - rank), Samples()))
    assert "the number of training samples differ between rank 0 and rank 1 (20 there, 19 here)" in words


@pytest.mark.parametrize("kind", ["inputs", "targets"])
@pytest.mark.parametrize("part", ["training", "validation"])
def test_another_shuffle_on_every_rank(part: str, kind: str) -> None:
    def make(rank: int) -> tuple[Any, Any]:
        order = np.random.RandomState(rank).permutation(20)
        odd = Samples(**{kind: lambda numbers: X[order[numbers]]})
        return (odd, Samples()) if part == "training" else (Samples(), odd)

    words = refusal(make)
    assert f"the {kind} of {part} samples 0, 1, 2, 3 differ between rank 0 and rank 1" in words
    assert "np.random.default_rng(0)" in words


def test_samples_that_differ_far_into_the_data() -> None:
    """The first micro-batch of the first step is looked at too."""

    def make(rank: int) -> tuple[Any, Any]:
        return Samples(lambda numbers: X[numbers] + rank * (numbers > 3).reshape(-1, 1)), Samples()

    assert "the inputs of training samples" in refusal(make)


def test_an_own_generator() -> None:
    chance = np.random.default_rng(0)
    words = refusal(lambda rank: (Samples(lambda numbers: X[numbers] * chance.random()), Samples()))
    assert words.startswith("the inputs of training samples 0, 1, 2, 3, read twice, differ")


def test_no_training_samples() -> None:
    assert "no training samples" in refusal(lambda rank: (Samples(length=0), Samples()))


def test_no_validation_samples() -> None:
    assert checked(lambda rank: (Samples(), Samples(length=0))) == [None, None]


def test_what_is_no_tensor() -> None:
    words = refusal(lambda rank: (Samples(lambda numbers: object()), Samples()))
    assert "must be tensors or NumPy arrays" in words


def test_samples_that_cannot_be_read() -> None:
    def unlabelled(numbers: Any) -> Any:
        raise KeyError("no label")

    words = refusal(lambda rank: (Samples(), Samples(targets=unlabelled)))
    assert words.startswith(
        "the targets of validation samples 0, 1, 2, 3 cannot be read: KeyError: 'no label'"
    )
    assert "(test_data_check.py, line " in words
