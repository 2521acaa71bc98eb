"""The example that tutorials start from: ten epochs, whatever the number of ranks."""

import math
from pathlib import Path
from statistics import mean

import pytest

from tests.parallel.launch import launch
from tests.parallel.runs import Finished

pytestmark = pytest.mark.parallel


def train(ranks: int, folder: Path) -> Finished:
    overrides = ["experiment=simplenet", "run.dir=run", "threads=1", "device=cpu"]
    return Finished(launch(ranks, overrides, folder).check(), folder / "run")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return train(1, tmp_path_factory.mktemp("one"))


def test_loss_falls_below_guessing(one: Finished) -> None:
    assert len(one.losses) == 100
    assert mean(one.losses[-10:]) < math.log(2) - 0.03
    assert one.validation[-1] < math.log(2) - 0.015


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks(one: Finished, ranks: int, tmp_path: Path) -> None:
    assert train(ranks, tmp_path).losses == pytest.approx(one.losses, rel=1e-6)
