"""Convolutional networks on images train on several stages as in one process, to the bit."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.pictures import folder
from tests.support.pools import Pools
from tests.support.runs import Finished
from tests.support.verifying import EQUAL, verify

pytestmark = pytest.mark.parallel

BASE = [
    "experiment=none",
    "batch.global_size=10",
    "batch.micro_size=3",
    "eval.samples=5",
    "optimizer.lr=0.01",
    "threads=1",
    "device=cpu",
]
RESNET = ["model=resnet", "model.parts=[2,2,2]", "model.width=4", "model.stem=small", "model.dropout=0.3"]
UNET = ["model=unet", "model.levels=3", "model.width=4", "model.dropout=0.3"]
SCENES = ["data=scenes", "data.samples=20", "data.validation=5", "data.size=16", "data.digits=1"]
HARD = ["precision=bf16", "memory.recompute=full", "schedule=zb_v"]

Overrides = Callable[[str], list[str]]


@pytest.fixture
def network(tmp_path: Path) -> Overrides:
    """Return a function that returns the overrides of a network, with its data."""

    def overrides(name: str) -> list[str]:
        if name == "unet":
            return [*BASE, *UNET, *SCENES]
        for part, each in (("train", 5), ("val", 2)):
            folder(tmp_path / "images" / part, ("a", "b", "c"), each)
        return [*BASE, *RESNET, "data=images", f"data.path={tmp_path / 'images'}", "data.size=16"]

    return overrides


@pytest.mark.parametrize("name", ["resnet", "unet"])
@pytest.mark.parametrize(
    ("ranks", "overrides"),
    [(2, HARD), (4, HARD), (4, ["layout.stages=2", "model.norm=group", "memory.recompute=selective"])],
    ids=["2 stages", "4 stages", "2 x 2"],
)
def test_equal_bits(  # noqa: PLR0917
    name: str, ranks: int, overrides: list[str], network: Overrides, pools: Pools, tmp_path: Path
) -> None:
    stages = [] if "layout.stages=2" in overrides else [f"layout.stages={ranks}"]
    given = [*network(name), "verify.steps=2", *stages, *overrides]
    assert EQUAL in verify(pools, ranks, given, tmp_path).check().out


def test_resuming_changes_images_alike(network: Overrides, pools: Pools, tmp_path: Path) -> None:
    """In the middle of an epoch, on another number of stages, and read by other processes."""
    run = [*network("resnet"), "train.steps=4", "eval.every=2", "checkpoint.every=2", "checkpoint.keep=0"]
    whole = Finished(pools.run(1, [*run, "run.dir=whole"], tmp_path).check(), tmp_path / "whole")
    rest = ["run.dir=rest", f"checkpoint.resume={whole.checkpoint(2)}", "layout.stages=2", "data.workers=2"]
    resumed = Finished(pools.run(2, [*run, *rest], tmp_path).check(), tmp_path / "rest")
    assert resumed.losses == whole.losses[2:]
    assert resumed.validation == whole.validation[1:]
    assert resumed.layer_files(4) == whole.layer_files(4)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_breaks_later(workers: int, network: Overrides, pools: Pools, tmp_path: Path) -> None:
    """The first stage alone finds it, or its worker."""
    given = [*network("resnet"), "train.steps=2", "run.dir=run", "layout.stages=2", "batch.global_size=15"]
    given.append(f"data.workers={workers}")
    broken = tmp_path / "images/train/b/3.png"  # of no sample that is read at start
    broken.write_bytes(broken.read_bytes()[:50])
    result = pools.run(2, given, tmp_path)
    assert result.code == 2, result.err
    (message,) = result.messages
    assert message.startswith(f"trainer: error: the image {broken} cannot be read: ")
