"""Faults of the kind that people bring are found before the second step, by name, on real ranks."""

import json
from pathlib import Path

import pytest

from tests.support.launch import Result
from tests.support.pools import Pools

MINE = [
    "model=custom",
    "model.target=tests.fixtures.faults:model",
    "data=custom",
    "data.target=tests.fixtures.faults:data",
    "batch.global_size=16",
    "batch.micro_size=2",
    "eval.samples=8",
    "train.steps=3",
    "checkpoint.every=1",
    "optimizer=sgd",
    "optimizer.lr=0.01",
    "threads=1",
    "run.dir=run",
]


def run(
    pools: Pools, folder: Path, fault: str, *overrides: str, stages: int = 2, replicas: int = 2
) -> Result:
    options = [f"+{part}.options.fault='{fault}'" for part in ("model", "data")]
    return pools.run(stages * replicas, [*MINE, f"layout.stages={stages}", *options, *overrides], folder)


def steps(folder: Path) -> int:
    metrics = folder / "run" / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    return sum("loss" in json.loads(line) for line in lines)


def test_without_a_fault(pools: Pools, tmp_path: Path) -> None:
    run(pools, tmp_path, "", "train.check_replicas=1", "memory.recompute=full").check()
    assert steps(tmp_path) == 3


BEFORE = {
    "shuffle": "the inputs of training samples 0, 1 differ between rank 0 and ranks 1, 2, 3",
    "length": "the number of training samples differ between rank 0 and ranks 1, 2, 3 (64 there, 63 here)",
    "own generator in data": "the inputs of training samples 0, 1, read twice, differ",
    "own generator in build": "odd/linear.weight differs between replica 0 and replica 1",
    "weights of the rank": "odd/linear.bias differs between replica 0 and replica 1",
    "tie built twice": "last/linear.weight does not begin with the weights of odd/linear.weight",
}


# Otherwise only the ranks of one stage refuse them, and the pool ends.
OF_ONE_STAGE = ["own generator in build", "weights of the rank"]


@pytest.mark.parametrize("fault", BEFORE)
def test_what_is_refused_before_the_first_step(fault: str, pools: Pools, tmp_path: Path) -> None:
    result = run(pools, tmp_path, fault, stages=1 if fault in OF_ONE_STAGE else 2)
    assert result.code == 2, result.out + result.err
    assert BEFORE[fault] in result.err
    assert "Traceback" not in result.err
    assert steps(tmp_path) == 0


AT_ONCE = {
    "nan in a sample": ("step 3", "first in the data's inputs, in micro-batch"),
    "overflow": ("step 2", "first in the output of layer 'odd', in micro-batch"),
    "gradient": ("step 1", "first in the gradient of odd/scale, in micro-batch 0 (rank 1)"),
}


@pytest.mark.parametrize("fault", AT_ONCE)
def test_numbers_that_are_not_finite(fault: str, pools: Pools, tmp_path: Path) -> None:
    result = run(pools, tmp_path, fault)
    assert result.code == 1, result.out + result.err
    for words in AT_ONCE[fault]:
        assert words in result.err
    assert "(rank " in result.err
    step = int(AT_ONCE[fault][0].split()[1])
    assert steps(tmp_path) == step - 1
    saved = sorted(path.parent.name for path in tmp_path.glob("run/checkpoints/*/manifest.json"))
    assert saved == [f"step-{number:08d}" for number in range(1, step)]


def test_steps_that_are_not_finite_can_be_skipped(pools: Pools, tmp_path: Path) -> None:
    run(pools, tmp_path, "nan in a sample", "train.non_finite=skip", "train.steps=4").check()
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics if line.get("skipped")] == [3]
    assert metrics[-1]["val_loss"] > 0


SECOND = ["own generator in forward", "attribute in forward"]


@pytest.mark.parametrize("fault", SECOND)
def test_another_second_forward(fault: str, pools: Pools, tmp_path: Path) -> None:
    result = run(pools, tmp_path, fault, "memory.recompute=full", "schedule=zb_h1", replicas=1)
    assert result.code == 1, result.out + result.err
    assert "run again for the backward, gives other results" in result.err
    assert "in layer 'odd' of stage 1: micro-batch" in result.err
    assert "of step 1" in result.err
    assert steps(tmp_path) == 0


def test_weights_that_change_in_a_forward(pools: Pools, tmp_path: Path) -> None:
    result = run(pools, tmp_path, "weights in forward", stages=1)
    assert result.code == 2, result.out + result.err
    assert "layer 'odd' changes its weights in its forward" in result.err
    assert steps(tmp_path) == 0


def test_replicas_that_drift_apart(pools: Pools, tmp_path: Path) -> None:
    drifts = ["optimizer=custom", "optimizer.target=tests.fixtures.faults:Drifts"]
    result = run(pools, tmp_path, "", *drifts, "optimizer.lr=0.01", "train.check_replicas=2")
    assert result.code == 1, result.out + result.err
    assert "the replicas differ after step 2: " in result.err
    assert "differs between replica 0 and replica 1" in result.err
    assert steps(tmp_path) == 1


def test_weights_that_are_not_finite_are_not_saved(pools: Pools, tmp_path: Path) -> None:
    diverges = ["optimizer=custom", "optimizer.target=tests.fixtures.faults:Diverges"]
    result = run(pools, tmp_path, "", *diverges, "optimizer.lr=0.01")
    assert result.code == 1, result.out + result.err
    assert (
        "the weights of layer 'first' (rank 0) are not finite after step 1: no checkpoint is saved"
        in result.err
    )
    assert not list(tmp_path.glob("run/checkpoints/*/manifest.json"))
