"""Speech on real ranks: the layout changes nothing, and letters that are tones are learnt."""

import json
from pathlib import Path

import pytest

from tests.support.pools import Pools
from tests.support.refusals import assert_refused
from tests.support.tones import random_texts, write_corpus
from tests.support.verifying import EQUAL, verify

pytestmark = pytest.mark.parallel

BASE = [
    "experiment=none",
    "model=speech",
    "model.front=stack",
    "model.stride=1",
    "model.cell=gru",
    "model.layers=2",
    "model.width=16",
    "data=speech",
    "data.features=20",
    "data.highest=3800",
    "data.hop=0.02",
    "threads=1",
    "device=cpu",
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Write recordings; return the overrides that name them."""
    root = tmp_path_factory.mktemp("tones")
    write_corpus(root / "train", {"anna": random_texts(24, 0), "bert": random_texts(24, 1)})
    write_corpus(root / "other", {"cleo": random_texts(6, 2)})
    parts = [f"data.path={root}/train", f"data.validation_path={root}/other", f"data.cache={root}/cache"]
    return [*BASE, *parts]


@pytest.mark.parametrize(
    ("ranks", "overrides"),
    [
        pytest.param(
            2,
            ["model.cell=lstm", "model.front=conv", "model.channels=2", "memory.recompute=selective"],
            id="2 ranks, LSTM",
        ),
        pytest.param(4, ["model.layers=6"], id="4 ranks, GRU"),
    ],
)
def test_nothing_changes(
    ranks: int, overrides: list[str], corpus: list[str], pools: Pools, tmp_path: Path
) -> None:
    """With everything that could change something, and weight gradients put off."""
    harsh = ["precision=bf16", "memory.recompute=full", "model.dropout=0.3", "schedule=zb_v"]
    sizes = ["batch.global_size=8", "batch.micro_size=2", "verify.steps=2", f"layout.stages={ranks}"]
    result = verify(pools, ranks, [*corpus, *harsh, *sizes, *overrides], tmp_path)
    assert f"{EQUAL} to the last bit" in result.check().out


def test_tones_are_learnt(corpus: list[str], pools: Pools, tmp_path: Path) -> None:
    """On two stages, and by a voice of another loudness."""
    sizes = ["batch.global_size=16", "batch.micro_size=8", "train.steps=40", "optimizer.lr=0.02"]
    pools.run(2, [*corpus, *sizes, "layout.stages=2", "eval.every=5", "run.dir=run"], tmp_path).check()
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    rates = [record["val_word_error_rate"] for line in lines if "val_loss" in (record := json.loads(line))]
    assert rates[0] > 0.5
    assert rates[-1] <= 0.05


def test_a_broken_recording(corpus: list[str], pools: Pools, tmp_path: Path) -> None:
    """The rank that prepares finds it; all ranks end, with its message."""
    broken = write_corpus(tmp_path / "broken", {"anna": ["ab", "ab"], "bert": ["ab"]})
    (broken / "anna/1/anna-1-0001.wav").write_bytes(b"noise")
    paths = [f"data.path={broken}", f"data.validation_path={broken}"]
    result = pools.run(2, [*corpus, *paths, "train.steps=1"], tmp_path)
    assert_refused(result, tmp_path, "anna-1-0001.wav cannot be read as a recording")
