"""With `train.deterministic=true`, runs repeated in one layout are bit-identical, whatever the timing."""

from pathlib import Path

import pytest

from tests.support.pools import Pools
from tests.support.runs import Finished

pytestmark = pytest.mark.parallel

# Three replicas: two would be bit-identical anyway, because a + b is b + a.
SLOW = [
    "experiment=none",
    "model=custom",
    "model.target=tests.support.slow:slowed_at_random",
    "+model.options={blocks: 2, width: 64, heads: 2, context: 32}",
    "data.context=32",
    "layout.stages=1",
    "batch.global_size=18",
    "batch.micro_size=2",
    "optimizer.clip=1.0",
    "train.steps=6",
    "train.deterministic=true",
]


def test_three_runs_of_three_replicas(pools: Pools, small: list[str], tmp_path: Path) -> None:
    files = [override for override in small if override != "experiment=small"]
    runs = []
    for number in range(3):
        overrides = [*files, *SLOW, f"run.dir=run{number}"]
        result = pools.run(3, overrides, tmp_path).check()
        runs.append(Finished(result, tmp_path / f"run{number}"))
    first, *others = runs
    assert len(first.losses) == 6
    for other in others:
        assert other.losses == first.losses
        assert other.grad_norms == first.grad_norms
        assert other.layer_files(6) == first.layer_files(6)
