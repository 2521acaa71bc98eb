"""A sharded optimizer on real ranks: each holds a share of the state, and training is bit-identical."""

import re
from pathlib import Path

import pytest

from tests.support.pools import Pools
from tests.support.runs import GPT, Finished, Trained

pytestmark = pytest.mark.parallel

# So far, four replicas have been bit-identical without it too.
FOUR = ["layout.stages=1", "train.deterministic=true"]
SHARDED = "optimizer.sharded=true"
LARGEST = 256 * 32 * 4 * 2 + 4  # bytes of AdamW's state for the embedding: two numbers a weight, and the step


def assert_same_bits(one: Finished, other: Finished, steps: tuple[int, ...]) -> None:
    assert one.losses == other.losses
    assert one.grad_norms == other.grad_norms
    assert one.validation == other.validation
    assert one.written == other.written
    for step in steps:
        assert one.layer_files(step) == other.layer_files(step)


def state_bytes(run: Finished, rank: int) -> int:
    """Return the size of a rank's optimizer state after its first step, according to its log."""
    (found,) = re.findall(
        r"optimizer state: ([\d,]+) bytes", (run.folder / "logs" / f"rank{rank}.log").read_text()
    )
    return int(found.replace(",", ""))


def test_four_replicas(trained: Trained) -> None:
    whole, sharded = trained(4, *FOUR), trained(4, *FOUR, SHARDED)
    assert_same_bits(sharded, whole, (3, 6))
    (total,) = {state_bytes(whole, rank) for rank in range(4)}
    shares = [state_bytes(sharded, rank) for rank in range(4)]
    assert sum(shares) == total
    assert max(shares) <= total / 4 + LARGEST < total / 2


def test_resumed_with_other_replicas_and_stages(
    trained: Trained, small: list[str], pools: Pools, tmp_path: Path
) -> None:
    """From four replicas to two of two stages: sharded before and not after, and vice versa.

    test_resume.py tests that resuming without sharding is bit-identical to an uninterrupted run.
    """
    resumed = []
    for source, after in ((trained(4, *FOUR, SHARDED), "false"), (trained(4, *FOUR), "true")):
        folder = tmp_path / after
        folder.mkdir()
        overrides = ["layout.stages=2", f"optimizer.sharded={after}"]
        resume = f"checkpoint.resume={source.checkpoint(3)}"
        result = pools.run(4, [*small, *GPT, *overrides, resume], folder).check()
        assert "resumed after step 3" in result.out
        resumed.append(Finished(result, folder / "run"))
    whole, sharded = resumed
    assert len(sharded.losses) == 3
    assert_same_bits(sharded, whole, (6,))
    assert state_bytes(sharded, 0) + state_bytes(sharded, 2) == state_bytes(whole, 0)
