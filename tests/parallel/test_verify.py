"""`python -m trainer.verify`: it passes where the layout changes nothing, and finds every mistake."""

import json
from pathlib import Path

import pytest

from tests.parallel.launch import Result, launch

pytestmark = pytest.mark.parallel

GPT = ["model.blocks=3", "batch.global_size=15", "optimizer.clip=1.0", "verify.steps=2"]
EQUAL = "the layout does not change the training: everything is equal"


def verify(ranks: int, overrides: list[str], folder: Path, *mistake: str) -> Result:
    module = "tests.parallel.mutated" if mistake else "trainer.verify"
    return launch(ranks, [*mistake, *overrides], folder, module=module)


@pytest.mark.parametrize(
    ("ranks", "overrides", "how"),
    [
        pytest.param(1, ["layout.devices_per_rank=3", "schedule=gpipe"], "to the last bit", id="3 stages"),
        pytest.param(4, ["layout.stages=2"], "to the last bit", id="2 replicas x 2 stages"),
        pytest.param(3, ["layout.stages=1"], "within rounding", id="3 replicas"),
        pytest.param(4, ["layout.stages=1", "averaging.op=adasum"], "", id="adasum"),
        pytest.param(2, ["layout.stages=1", "averaging.compression=fp16"], "within rounding", id="fp16"),
    ],
)
def test_nothing_changes(
    ranks: int, overrides: list[str], how: str, small: list[str], tmp_path: Path
) -> None:
    result = verify(ranks, [*small, *GPT, *overrides], tmp_path).check()
    assert f"{EQUAL} {how}".strip() in result.out
    rows = {line.split()[0]: line for line in result.out.splitlines() if line.strip()}
    assert "equal bits" in rows["loss"]
    for name in ("embedding/tokens.weight", "block.2/narrow.bias", "head/linear.weight"):
        assert "equal bits" in rows[name]  # of the weights, whatever the gradients are
        assert "FAILED" not in rows[name]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("mistake", "found"),
    [
        ("averaging_forgets_a_layer", "block.1/attention_norm.weight: its gradient"),
        ("averaging_is_a_mean", "block.1/narrow.weight: its gradient"),
        ("averaging_is_of_replicas_means", "block.1/narrow.weight: its gradient"),
        ("gradients_are_complete_too_early", "block.2/narrow.weight: its gradient"),
        ("seeds_count_micro_batches_by_replica", "block.0/widen.weight: its gradient"),
        ("seeds_forget_the_step", "block.0/widen.weight: its gradient"),
        ("weights_follow_the_rank", "head/linear.weight: its weight"),
        ("tie_loses_a_use", "embedding/tokens.weight: its gradient"),
        ("tie_does_not_come_back", "head/linear.weight: its gradient"),
        ("tie_begins_apart", "head/linear.weight: its weight"),
        ("norm_forgets_a_parameter", "block.0/widen.weight: its weight"),
        ("norm_is_of_a_stage", "head/norm.weight: its weight"),
    ],
)
def test_mistakes_are_found(mistake: str, found: str, small: list[str], tmp_path: Path) -> None:
    result = verify(4, [*small, *GPT], tmp_path, mistake)
    assert result.code == 1, result.out + result.err
    assert any(line.startswith(f"FAILED  {found}") for line in result.out.splitlines()), result.out
    assert EQUAL not in result.out
    assert not result.messages
    assert "Traceback" not in result.err


def test_digests_of_another_launch(small: list[str], tmp_path: Path) -> None:
    """For models that fit no single process."""
    saved = tmp_path / "two.json"
    verify(2, [*small, *GPT, "verify.against=none", f"verify.save={saved}"], tmp_path).check()
    against = f"verify.against={saved}"
    overrides = [*small, *GPT, "layout.stages=3", "schedule=gpipe"]
    equal = verify(3, [*overrides, against], tmp_path).check()
    assert f"{EQUAL} to the last bit" in equal.out

    refused = verify(3, [*overrides, against, "optimizer.lr=0.5"], tmp_path)
    assert refused.code == 2
    assert "optimizer.lr=" in refused.messages[0]

    content = json.loads(saved.read_text())
    content["steps"][1]["digests"]["weight block.1/narrow.bias"] = "0" * 64
    saved.write_text(json.dumps(content))
    different = verify(1, [*small, *GPT, "layout.stages=1", against], tmp_path)
    assert different.code == 1
    failed = [line for line in different.out.splitlines() if line.startswith("FAILED")]
    assert len(failed) == 1
    assert failed[0].startswith("FAILED  block.1/narrow.bias: its weight has other bits at step 2")


def test_replicas_that_drift_apart(small: list[str], tmp_path: Path) -> None:
    """Found without any reference, and said with the rank's number."""
    overrides = [*small, *GPT, "verify.against=none"]
    result = verify(4, overrides, tmp_path, "averaging_forgets_a_layer")
    assert result.code == 1
    assert "FAILED  block.1/narrow.bias: its gradient on replica 1 (rank 2)" in result.out
