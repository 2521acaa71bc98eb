"""Mixed precision on real ranks: bit-identical to one process, also where gradients overflow."""

import shutil
from pathlib import Path

import pytest

from tests.support.pools import Pools
from tests.support.runs import Finished, Ranks
from tests.support.verifying import EQUAL, verify

pytestmark = pytest.mark.parallel

# These gradients overflow float16 until the loss scale has been halved a few times.
LOUD = [
    "experiment=none",
    "model=custom",
    "model.target=tests.fixtures.images:loud",
    "data=custom",
    "data.target=tests.fixtures.images:images",
    "precision=fp16",
    "batch.global_size=15",
    "optimizer.lr=0.01",
    "threads=1",
    "device=cpu",
    "run.dir=run",
]


@pytest.mark.parametrize(
    "overrides", [["precision=bf16"], ["precision=fp16", "schedule=zb_h1"]], ids=["bf16", "fp16, zb_h1"]
)
def test_the_layout_changes_nothing(overrides: list[str], verified: Ranks) -> None:
    """Two replicas of two stages, the head tied to the embedding across them."""
    result = verified(4, "layout.stages=2", *overrides).check()
    assert f"{EQUAL} to the last bit" in result.out
    rows = {line.split()[0]: line for line in result.out.splitlines() if line.strip()}
    assert rows["head/linear.weight"].count("equal bits") == 2


def test_skipped_steps_are_skipped_by_all(pools: Pools, tmp_path: Path) -> None:
    """Weights, running statistics and the scale stay equal to one process's, which skips as documented."""
    result = verify(pools, 4, [*LOUD, "layout.stages=2", "train.steps=5", "verify.steps=5"], tmp_path).check()
    assert EQUAL in result.out
    assert "nan" not in result.out.lower()


def test_rounding_only_at_cuts_is_found(verified: Ranks) -> None:
    result = verified(2, "layout.stages=2", "precision=bf16", mutation="layers_round_at_cuts_alone")
    assert result.code == 1, result.out + result.err
    assert "FAILED  loss: is off by" in result.out


def test_a_run_resumed_between_skipped_steps(pools: Pools, tmp_path: Path) -> None:
    """With another number of stages; the loss scale continues from its saved value."""
    overrides = [*LOUD, "train.steps=6", "checkpoint.every=2", "checkpoint.keep=0"]
    result = pools.run(2, [*overrides, "layout.stages=2"], tmp_path).check()
    whole = Finished(result, tmp_path / "run")
    skipped = [step["skipped"] for step in whole.steps]
    assert skipped == [norm is None for norm in whole.grad_norms]
    assert skipped[:3] == [True, True, True]  # the resumed checkpoint is in the middle of these
    assert skipped[-1] is False
    scales = [step["loss_scale"] for step in whole.steps]
    assert scales == [2.0 ** (16 - sum(skipped[:step])) for step in range(6)]
    assert "step 3 skipped: its gradient overflows at loss scale 16384" in result.out
    losses, files = whole.losses, whole.layer_files(6)
    assert whole.layer_files(2) != whole.layer_files(4)
    for step in (4, 6):
        shutil.rmtree(whole.checkpoint(step))
    resumed = Finished(pools.run(1, overrides, tmp_path).check(), whole.folder)
    assert [step["loss_scale"] for step in resumed.steps] == scales
    assert resumed.losses == losses
    assert resumed.layer_files(6) == files
