"""A run's folder: the configuration reads back, numbers keep their bits, every rank has a log."""

import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from trainer.config.schema import AdamWConfig, Config, GPTConfig, TextConfig
from trainer.errors import UserError
from trainer.metrics.folder import RunFolder


class Rank:
    """A rank of a world."""

    def __init__(self, rank: int = 0) -> None:
        self.rank = rank
        self.barriers = 0

    def barrier(self) -> None:
        self.barriers += 1


@pytest.fixture(autouse=True)
def own_log() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    for handler in [handler for handler in root.handlers if handler not in handlers]:
        root.removeHandler(handler)
        handler.close()
    root.setLevel(level)


def config(folder: Path) -> Config:
    made = Config(model=GPTConfig(), data=TextConfig(cache="cache"), optimizer=AdamWConfig())
    made.run.dir = str(folder)
    return made


def folder_of(path: Path, rank: int = 0) -> RunFolder:
    return RunFolder(config(path), Rank(rank))  # type: ignore[arg-type]


def objects(folder: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in folder.metrics.read_text().splitlines()]


def test_configuration_reads_back(tmp_path: Path) -> None:
    folder_of(tmp_path / "run")
    read = OmegaConf.load(tmp_path / "run" / "config.yaml")
    assert read == OmegaConf.structured(config(tmp_path / "run"))


def test_one_rank_writes_the_metrics_and_all_ranks_log(tmp_path: Path) -> None:
    for rank in (0, 1):
        folder = folder_of(tmp_path / "run", rank)
        folder.write(step=1, loss=2.0, rank=rank)
        logging.getLogger("somewhere").info("rank %d is here", rank)
    assert objects(folder) == [{"step": 1, "loss": 2.0, "rank": 0}]
    for rank in (0, 1):
        assert f"rank {rank} is here" in (tmp_path / "run" / "logs" / f"rank{rank}.log").read_text()
        assert f"rank {1 - rank} is here" not in (tmp_path / "run" / "logs" / f"rank{rank}.log").read_text()


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(allow_nan=False))
def test_numbers_keep_their_bits(tmp_path: Path, number: float) -> None:
    folder = folder_of(tmp_path / "run")
    folder.write(step=1, loss=number)
    assert objects(folder)[-1]["loss"].hex() == number.hex()


def test_nan_loss_reads_back(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "run")
    folder.write(step=1, loss=math.nan)
    assert math.isnan(objects(folder)[0]["loss"])


def test_steps_that_a_resumed_run_repeats_are_dropped(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "run")
    for step in (1, 2, 3):
        folder.write(step=step, loss=0.5)
        folder.write(step=step, val_loss=0.25)
    with folder.metrics.open("a") as file:
        file.write('{"step": 2, "lo')  # cut off by a crash
    folder.forget_after(2)
    folder.write(step=3, loss=0.125)
    superseded = (folder.path / "superseded.jsonl").read_text()
    assert superseded.splitlines()[:2] == ['{"step": 3, "loss": 0.5}', '{"step": 3, "val_loss": 0.25}']
    assert [(item["step"], item.get("loss")) for item in objects(folder)] == [
        (1, 0.5),
        (1, None),
        (2, 0.5),
        (2, None),
        (3, 0.125),
    ]


def test_nothing_to_drop(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "run")
    folder.forget_after(0)
    assert not folder.metrics.exists()


def test_folder_that_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"run\.dir=.*file/run cannot be written"):
        folder_of(tmp_path / "file" / "run")
