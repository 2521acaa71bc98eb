"""BERT with segments, padding and dynamic masks is the same in every layout, to the bit."""

from pathlib import Path

import pytest

from tests.support.hf_models import VOCABULARY, folder
from tests.support.pools import Pools
from tests.support.verifying import EQUAL, verify

pytestmark = pytest.mark.parallel

BASE = [
    "experiment=none",
    "data=pairs",
    "data.context=32",
    "batch.global_size=14",
    "batch.micro_size=4",
    "eval.samples=5",
    "verify.steps=2",
    "optimizer.lr=0.01",
    "threads=1",
    "device=cpu",
]
BERT = [
    "model=bert",
    "model.blocks=6",
    "model.width=16",
    "model.heads=2",
    "model.context=32",
    "model.dropout=0.1",
]
WAY = ["precision=bf16", "memory.recompute=full", "schedule=zb_v"]


@pytest.fixture(scope="module")
def text(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the overrides for a small text, tokenised once."""
    return [f"data.path={text_file}", f"data.cache={tmp_path_factory.mktemp('cache')}"]


@pytest.mark.parametrize(
    ("ranks", "overrides"),
    [
        (2, ["layout.stages=2", *WAY]),
        (4, ["layout.stages=4", "model.norm=pre", "model.positions=rotary", *WAY]),
        (4, ["layout.stages=2", *WAY]),
    ],
)
def test_equal_bits(ranks: int, overrides: list[str], text: list[str], pools: Pools, tmp_path: Path) -> None:
    result = verify(pools, ranks, [*BASE, *BERT, *text, *overrides], tmp_path)
    assert f"{EQUAL} to the last bit" in result.check().out


def test_pairs_for_a_model_of_transformers(text: list[str], pools: Pools, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    model = ["model=hf", f"model.path={folder('bert', tmp_path)}", "layout.stages=2"]
    wide = ["model.load=config", f"+model.config.vocab_size={VOCABULARY + 4}"]
    result = verify(pools, 2, [*BASE, *text, *model, *wide, "schedule=zb_h1"], tmp_path)
    assert f"{EQUAL} to the last bit" in result.check().out
