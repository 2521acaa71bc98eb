"""`trainer.evaluate` gives a run's own validation again, in any layout, and refuses what is not trained."""

import json
from pathlib import Path

import pytest

from tests.support.pools import Pools
from tests.support.refusals import assert_refused
from tests.support.runs import Finished

pytestmark = pytest.mark.parallel

SIMPLE = [
    "experiment=simplenet",
    "run.dir=run",
    "threads=1",
    "device=cpu",
    "layout.stages=1",
    "train.steps=4",
]


@pytest.fixture(scope="module")
def run(pools: Pools, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("trained")
    return Finished(pools.run(1, [*SIMPLE, "eval.samples=0"], folder).check(), folder / "run")


@pytest.mark.parametrize(("ranks", "stages"), [(1, 1), (2, 2), (2, 1)])
def test_a_runs_own_validation(ranks: int, stages: int, run: Finished, pools: Pools, tmp_path: Path) -> None:
    overrides = [f"run.dir={run.folder}", "evaluate.output=results.json", f"layout.stages={stages}"]
    result = pools.run(ranks, [*overrides, "threads=1"], tmp_path, module="trainer.evaluate").check()
    results = json.loads((tmp_path / "results.json").read_text())
    own = run.objects[-1]
    assert results["samples"] == results["count"] == 200
    assert results["loss"] == pytest.approx(own["val_loss"], rel=1e-12)
    assert results["accuracy"] == own["val_accuracy"]
    if (ranks, stages) != (2, 1):
        assert results["loss"] == own["val_loss"]
    assert f"accuracy  {results['accuracy']:.6g}" in result.out
    assert "step 4" in result.out
    assert not list(tmp_path.rglob("metrics.jsonl"))


def test_no_weights_are_refused(pools: Pools, tmp_path: Path) -> None:
    result = pools.run(2, ["experiment=simplenet", "threads=1"], tmp_path, module="trainer.evaluate")
    assert_refused(result, tmp_path, "nothing names trained weights")
