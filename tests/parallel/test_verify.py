"""`python -m trainer.verify`: it passes where the layout changes nothing, and finds every mutation."""

import json
from pathlib import Path

import pytest

from tests.support.launch import Result, launch
from tests.support.pools import Pools
from tests.support.runs import Ranks
from tests.support.verifying import EQUAL, GPT, verify

pytestmark = pytest.mark.parallel


@pytest.mark.parametrize(
    ("ranks", "overrides", "how"),
    [
        pytest.param(1, ["layout.devices_per_rank=3", "schedule=gpipe"], "to the last bit", id="3 stages"),
        pytest.param(4, ["layout.stages=2"], "to the last bit", id="2 replicas x 2 stages"),
        pytest.param(4, ["layout.stages=2", "schedule=zb_h1"], "to the last bit", id="2 x 2, zb_h1"),
        # Whether these round otherwise depends on the order in which the MPI adds.
        pytest.param(3, ["layout.stages=1"], "", id="3 replicas"),
        pytest.param(3, ["layout.stages=1", "optimizer.sharded=true"], "", id="3 replicas, sharded"),
        pytest.param(4, ["layout.stages=1", "averaging.op=adasum"], "", id="adasum"),
        pytest.param(2, ["layout.stages=1", "averaging.compression=fp16"], "within rounding", id="fp16"),
    ],
)
def test_nothing_changes(ranks: int, overrides: list[str], how: str, verified: Ranks, tmp_path: Path) -> None:
    result = verified(ranks, *overrides).check()
    assert f"{EQUAL} {how}".strip() in result.out
    rows = {line.split()[0]: line for line in result.out.splitlines() if line.strip()}
    assert "equal bits" in rows["loss"]
    for name in ("embedding/tokens.weight", "block.2/narrow.bias", "head/linear.weight"):
        assert "equal bits" in rows[name]  # the weights, whatever the gradients
        assert "FAILED" not in rows[name]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("mistake", "stages", "found"),
    [
        ("averaging_forgets_a_layer", 1, "block.1/attention_norm.weight: its gradient"),
        ("averaging_is_a_mean", 1, "block.1/narrow.weight: its gradient"),
        ("averaging_is_of_replicas_means", 1, "block.1/narrow.weight: its gradient"),
        ("gradients_are_complete_too_early", 1, "block.2/narrow.weight: its gradient"),
        ("seeds_count_micro_batches_by_replica", 1, "block.0/widen.weight: its gradient"),
        ("seeds_forget_the_step", 2, "block.0/widen.weight: its gradient"),
        ("weights_follow_the_rank", 2, "head/linear.weight: its gradient"),
        ("tie_loses_a_use", 2, "embedding/tokens.weight: its gradient"),
        ("tie_does_not_come_back", 2, "head/linear.weight: its gradient"),
        ("tie_begins_apart", 2, "head/linear.weight: its gradient"),
        ("norm_forgets_a_parameter", 2, "block.0/widen.weight: its weight"),
        ("norm_is_of_a_stage", 2, "head/norm.weight: its weight"),
    ],
)
def test_mistakes_are_found(mistake: str, stages: int, found: str, verified: Ranks) -> None:
    assert_found(verified(2, f"layout.stages={stages}", mutation=mistake), *found.split(": "))


def assert_found(result: Result, name: str, words: str) -> None:
    assert result.code == 1, result.out + result.err
    failures = [line for line in result.out.splitlines() if line.startswith(f"FAILED  {name}: ")]
    assert failures, result.out
    assert words in failures[0]
    assert EQUAL not in result.out
    assert not result.messages
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    ("mistake", "stages"),
    [pytest.param("averaging_is_a_mean", 1, marks=pytest.mark.quick), ("norm_is_of_a_stage", 2)],
)
def test_mistakes_are_taken_back(mistake: str, stages: int, verified: Ranks) -> None:
    """Otherwise a mistake could be found because of an earlier one."""
    assert verified(2, f"layout.stages={stages}", mutation=mistake).code == 1
    assert EQUAL in verified(2, f"layout.stages={stages}").check().out


def test_exit_codes(small: list[str], tmp_path: Path) -> None:
    """In a launch of its own, because scripts rely on them."""
    overrides = [*small, *GPT, "layout.stages=1"]
    equal = launch(2, overrides, tmp_path, module="trainer.verify").check()
    assert f"{EQUAL} to the last bit" in equal.out
    different = launch(
        2, ["averaging_is_a_mean", *overrides], tmp_path, module="tests.support.mutated_verify"
    )
    assert_found(different, "block.1/narrow.weight", "its gradient")
    assert not different.left_over


def test_statistics_of_one_replica_are_found(pools: Pools, tmp_path: Path) -> None:
    overrides = [
        "experiment=none",
        "model=custom",
        "model.target=tests.fixtures.images:convolutional",
        "data=custom",
        "data.target=tests.fixtures.images:images",
        "layout.stages=1",
        "batch.global_size=15",
        "train.steps=3",
        "optimizer.lr=0.01",
        "threads=1",
        "device=cpu",
    ]
    assert EQUAL in verify(pools, 2, overrides, tmp_path).check().out
    found = verify(pools, 2, overrides, tmp_path, "statistics_are_of_a_replica")
    assert found.code == 1
    assert "FAILED  convolution.0/1.running_mean: its buffer" in found.out


def test_digests_of_another_launch(verified: Ranks, tmp_path: Path) -> None:
    """This is for models too large for a single process."""
    saved = tmp_path / "two.json"
    verified(2, "verify.against=none", f"verify.save={saved}").check()
    against = f"verify.against={saved}"
    overrides = ["layout.stages=3", "schedule=gpipe", against]
    assert f"{EQUAL} to the last bit" in verified(3, *overrides).check().out

    refused = verified(3, *overrides, "optimizer.lr=0.5")
    assert refused.code == 2
    assert "optimizer.lr=" in refused.messages[0]

    content = json.loads(saved.read_text())
    content["steps"][1]["digests"]["weight block.1/narrow.bias"] = "0" * 64
    saved.write_text(json.dumps(content))
    different = verified(1, "layout.stages=1", against)
    assert different.code == 1
    failed = [line for line in different.out.splitlines() if line.startswith("FAILED")]
    assert len(failed) == 1
    assert failed[0].startswith("FAILED  block.1/narrow.bias: its weight has different bits at step 2")


def test_replicas_that_drift_apart(verified: Ranks) -> None:
    """Found without a reference, and reported with the rank's number."""
    result = verified(4, "verify.against=none", mutation="averaging_forgets_a_layer")
    assert result.code == 1
    assert "FAILED  block.1/narrow.bias: its gradient on replica 1 (rank 2)" in result.out


def test_weights_that_stay_in_their_shard(verified: Ranks) -> None:
    overrides = ["layout.stages=1", "optimizer.sharded=true"]
    result = verified(2, *overrides, mutation="weights_stay_in_their_shard")
    assert result.code == 1
    failures = [line for line in result.out.splitlines() if line.startswith("FAILED  head/linear.weight: ")]
    assert "its weight is off by" in failures[0]  # assigned to the second replica, never sent to the first


def custom(*overrides: str) -> list[str]:
    """Return overrides for a custom model, without `train.steps`, which verification does not need."""
    return [
        "experiment=none",
        "model=custom",
        "data=custom",
        "data.target=tests.fixtures.images:images",
        "batch.global_size=12",
        "batch.micro_size=3",
        "threads=1",
        "device=cpu",
        "verify.steps=2",
        *overrides,
    ]


@pytest.mark.parametrize(
    ("what", "ranks", "overrides", "found"),
    [
        (
            "calls",
            1,
            ["layout.stages=2", "layout.devices_per_rank=2", "layout.boundaries=[1]"],
            "gives other results when it runs again",
        ),
        (
            "process",
            2,
            ["layout.stages=2", "layout.boundaries=[1]"],
            "gives other results on rank 1 than in the reference",
        ),
    ],
)
def test_the_operation_that_differs_is_named(  # noqa: PLR0917
    what: str, ranks: int, overrides: list[str], found: str, pools: Pools, tmp_path: Path
) -> None:
    target = ["model.target=tests.toys.histories:model", f"+model.options.what={what}"]
    result = verify(pools, ranks, custom(*target, *overrides), tmp_path)
    assert result.code == 1
    (line,) = [line for line in result.out.splitlines() if line.startswith("found: ")]
    kernel = {"calls": "aten.mul.Tensor", "process": "aten.add.Tensor"}[what]
    assert line.startswith(
        f"found: layer 'middle' {found}, from the same inputs, weights and seeds: first in {kernel}"
    )
    assert "(0, histories.py:" in line  # the module within the layer, and the line


def test_what_is_not_promised_is_no_difference(pools: Pools, tmp_path: Path) -> None:
    target = ["model.target=tests.toys.histories:model", "+model.options.what=mean"]
    result = verify(pools, 2, custom(*target, "layout.stages=1"), tmp_path).check()
    assert f"{EQUAL} to the last bit" in result.out
    assert "note: a buffer that a forward changes may depend on the layout: middle/0.mean" in result.out

    target = ["model.target=tests.fixtures.images:convolutional"]
    result = verify(pools, 1, custom(*target, "layout.stages=1"), tmp_path).check()
    rounded, exact = "running statistics", "loss, gradient norm, validation loss, gradients, weights"
    assert f"{EQUAL} within rounding ({rounded}) or to the last bit ({exact})" in result.out


def test_existing_modules_and_another_recomputation(pools: Pools, tmp_path: Path) -> None:
    saved = tmp_path / "saved.json"
    target = "model.target=tests.toys.histories:existing"
    result = verify(pools, 1, custom(target, "layout.stages=1", f"verify.save={saved}"), tmp_path).check()
    assert f"{EQUAL} within rounding (" in result.out
    others = custom(target, "layout.stages=2", "memory.recompute=full", f"verify.against={saved}")
    assert f"{EQUAL} to the last bit" in verify(pools, 2, others, tmp_path).check().out
