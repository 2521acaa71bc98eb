"""When a run saves: by steps, by time, before it validates."""

from pathlib import Path

import pytest

from tests.support.pools import Pools
from tests.support.runs import Finished

pytestmark = pytest.mark.parallel

STEPS = ["train.steps=4", "checkpoint.keep=0", "eval.samples=2", "generate.tokens=0", "progress=line"]


def checkpoints(folder: Path) -> list[int]:
    return sorted(int(path.parent.name[-8:]) for path in folder.glob("run/checkpoints/step-*/manifest.json"))


@pytest.mark.parametrize("ranks", [1, 2])
def test_by_time(ranks: int, small: list[str], pools: Pools, tmp_path: Path) -> None:
    """A checkpoint is due after every step, by the clock of rank 0."""
    overrides = [*small, *STEPS, "layout.stages=1", "checkpoint.minutes=1e-9"]
    result = Finished(pools.run(ranks, overrides, tmp_path).check(), tmp_path / "run")
    assert len(result.steps) == 4
    assert checkpoints(tmp_path) == [1, 2, 3, 4]


def test_not_by_time(small: list[str], pools: Pools, tmp_path: Path) -> None:
    pools.run(1, [*small, *STEPS, "checkpoint.minutes=0"], tmp_path).check()
    assert checkpoints(tmp_path) == [4]


@pytest.mark.parametrize(("every", "saved"), [(2, [2]), (0, [4])])
def test_before_validation(every: int, saved: list[int], pools: Pools, tmp_path: Path) -> None:
    """Validation is the first to run code that training does not: what fails there must cost nothing."""
    custom = ["data=custom", "data.target=tests.support.models:unlabelled", "model=simplenet"]
    often = [
        f"eval.every={every}",
        f"checkpoint.every={every}",
        "run.dir=run",
        "eval.samples=8",
        "threads=1",
        "device=cpu",
    ]
    result = pools.run(1, [*STEPS, *custom, *often, "batch.global_size=8"], tmp_path)
    assert result.code == 1
    assert "KeyError: 'no label'" in result.err
    assert checkpoints(tmp_path) == saved
