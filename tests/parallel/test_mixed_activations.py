"""What passes between stages may be nested, of several types, of changing shapes, and skip a stage."""

from pathlib import Path

import pytest

from tests.parallel.launch import launch
from tests.parallel.runs import Finished

pytestmark = pytest.mark.parallel

MIXED = [
    "model=custom",
    "model.target=tests.parallel.models:mixed",
    "data=custom",
    "data.target=tests.parallel.models:ragged",
    "batch.global_size=11",
    "batch.micro_size=2",
    "train.steps=6",
    "checkpoint.every=3",
    "run.dir=run",
    "threads=1",
    "device=cpu",
]


def train(ranks: int, folder: Path, *overrides: str) -> Finished:
    return Finished(launch(ranks, [*MIXED, *overrides], folder).check(), folder / "run")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return train(1, tmp_path_factory.mktemp("one"))


def test_three_stages(one: Finished, tmp_path: Path) -> None:
    three = train(3, tmp_path, "layout.stages=3", "layout.boundaries=[2,4]")
    assert three.losses == one.losses
    assert three.grad_norms == one.grad_norms
    assert three.validation == one.validation
    assert three.layer_files(6) == one.layer_files(6)


def test_two_replicas(one: Finished, tmp_path: Path) -> None:
    two = train(2, tmp_path, "layout.stages=1")
    assert two.losses == pytest.approx(one.losses, rel=1e-6)
    assert two.validation == pytest.approx(one.validation, rel=1e-6)


def test_frozen_layers_stay_as_they_are(one: Finished) -> None:
    before, after = one.layer_files(3), one.layer_files(6)
    assert after["frozen.safetensors"] == before["frozen.safetensors"]
    assert after["middle.0.safetensors"] != before["middle.0.safetensors"]
