"""`python -m trainer.verify` with layers that random models have found to need care (`tests/generated`)."""

from pathlib import Path

import pytest

from tests.support.pools import Pools
from tests.support.verifying import EQUAL, verify

pytestmark = pytest.mark.parallel

BASE = [
    "experiment=none",
    "model=custom",
    "model.target=tests.support.one_part:model",
    "data=binary",
    "batch.global_size=23",
    "train.steps=3",
    "optimizer.lr=0.01",
    "threads=1",
    "device=cpu",
]
FP16 = "precision=fp16"


@pytest.mark.parametrize(
    ("part", "overrides"),
    [
        pytest.param("bfloat16", ["optimizer.clip=0.001"], id="clipped gradients in half precision"),
        pytest.param("fixed statistics", [], id="batch normalisation that train() keeps in evaluation"),
        pytest.param("moving mean", ["+model.options.factor=1e4", FP16], id="buffers of a skipped step"),
        pytest.param(
            "moving mean", ["+model.options.factor=1e38", "train.non_finite=skip"], id="and without scaling"
        ),
        pytest.param("largest norm", ["memory.recompute=full"], id="weights that a forward scales"),
    ],
)
def test_one_process(part: str, overrides: list[str], pools: Pools, tmp_path: Path) -> None:
    result = verify(pools, 1, [*BASE, f"+model.options.part='{part}'", *overrides], tmp_path)
    assert f"{EQUAL} to the last bit" in result.check().out


def test_a_gradient_that_is_not_contiguous_where_it_leaves_a_layer(pools: Pools, tmp_path: Path) -> None:
    overrides = [*BASE, "model.target=tests.support.one_part:recurrent", "batch.micro_size=8"]
    assert f"{EQUAL} to the last bit" in verify(pools, 1, overrides, tmp_path).check().out


def test_a_buffer_that_is_not_saved_may_differ_between_replicas(pools: Pools, tmp_path: Path) -> None:
    overrides = ["+model.options.part='fleeting mean'", "layout.stages=1"]
    assert EQUAL in verify(pools, 2, [*BASE, *overrides], tmp_path).check().out
