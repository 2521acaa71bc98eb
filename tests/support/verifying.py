"""`trainer.verify` in a pool, and its verdict."""

from collections.abc import Sequence
from pathlib import Path

from tests.support.launch import Result
from tests.support.pools import Pools

GPT = ["model.blocks=3", "batch.global_size=15", "optimizer.clip=1.0", "verify.steps=2"]
EQUAL = "the layout does not change the training: everything is equal"


def verify(
    pools: Pools, ranks: int, overrides: Sequence[str], folder: Path, mutation: str | None = None
) -> Result:
    """Verify on some ranks, with a mistake of `tests.support.mutations` in the trainer."""
    return pools.run(ranks, overrides, folder, module="trainer.verify", mutation=mutation)
