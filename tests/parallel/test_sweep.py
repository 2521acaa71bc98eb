"""Hydra's --multirun: several runs from one launch."""

import json
from pathlib import Path

import pytest

from tests.support.launch import launch
from tests.support.pools import Pools

pytestmark = pytest.mark.parallel


def test_every_run_has_a_folder(small: list[str], tmp_path: Path) -> None:
    """The folder that the ranks start in gets no other files."""
    overrides = [*small, "train.steps=2", "generate.tokens=0", "optimizer.lr=0.001,0.01", "--multirun"]
    launch(2, overrides, tmp_path).check()
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".txt"] == [
        "run"
    ]  # besides its output
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["0", "1", "multirun.yaml"]
    first, second = (
        [json.loads(line) for line in (tmp_path / "run" / number / "metrics.jsonl").read_text().splitlines()]
        for number in ("0", "1")
    )
    assert first[0]["loss"] == second[0]["loss"], "both start from the same weights"
    assert first[1]["loss"] != second[1]["loss"], "and go on with their own learning rates"


def test_replicas_stay(pools: Pools, small: list[str], tmp_path: Path) -> None:
    """Horovod starts once a process, so one launch has one number of replicas."""
    overrides = [*small, "train.steps=1", "generate.tokens=0", "layout.stages=1,2"]
    overrides.append("train.deterministic=true")  # as other jobs of four replicas: they share the ranks
    result = pools.run(4, [*overrides, "--multirun"], tmp_path)
    assert result.code == 2
    assert len(result.messages) == 1, result.err
    assert "number of replicas" in result.messages[0]
