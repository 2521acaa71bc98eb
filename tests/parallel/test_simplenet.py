"""The tutorials' first example: ten epochs, on any number of ranks."""

import math
from pathlib import Path
from statistics import mean

import pytest

from tests.support.launch import launch
from tests.support.runs import Finished, Trained

pytestmark = pytest.mark.parallel


TEN_EPOCHS = ["experiment=simplenet", "run.dir=run", "threads=1", "device=cpu"]


@pytest.fixture
def one(finished: Trained) -> Finished:
    return finished(1, *TEN_EPOCHS)


def test_loss_falls_below_guessing(one: Finished) -> None:
    assert len(one.losses) == 100
    assert mean(one.losses[-10:]) < math.log(2) - 0.03
    assert one.validation[-1] < math.log(2) - 0.015


def test_four_ranks(one: Finished, finished: Trained) -> None:
    assert finished(4, *TEN_EPOCHS).losses == pytest.approx(one.losses, rel=1e-6)


def test_as_users_start_it(one: Finished, tmp_path: Path) -> None:
    """With horovodrun: only rank 0 prints, and only complete lines."""
    result = launch(2, [*TEN_EPOCHS, "progress=line"], tmp_path).check()
    assert Finished(result, tmp_path / "run").losses == pytest.approx(one.losses, rel=1e-6)
    assert result.speakers == {0}
    lines = result.out.splitlines()
    assert sum(line.startswith("simplenet: 2 ranks = 1 replica x 2 stages") for line in lines) == 1
    steps = [line for line in lines if line.startswith("step ") and "validation" not in line]
    assert len({line.split()[1] for line in steps}) == len(steps) >= 2
    assert steps[0].startswith("step 1/100  loss ")
    assert steps[-1].startswith("step 100/100  loss ")
    assert all(line.endswith(" left") for line in steps)
