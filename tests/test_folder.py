"""A run's folder: the configuration reads back, numbers keep their bits, every rank has a log."""

import json
import logging
import math
import resource
import signal
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
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_keep_their_bits(tmp_path: Path, number: float) -> None:
    folder = folder_of(tmp_path / "run")
    folder.write(step=1, loss=number)
    assert objects(folder)[-1]["loss"].hex() == number.hex()


def test_what_strict_json_has_no_number_for_is_null(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "run")
    folder.write(step=1, loss=math.nan)
    folder.write(step=2, cpu_seconds=[1.5, math.inf])
    assert objects(folder) == [{"step": 1, "loss": None}, {"step": 2, "cpu_seconds": [1.5, None]}]


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


def test_metrics_that_are_damaged_do_not_stop_a_resume(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "run")
    good = [b'{"step": 1, "loss": 0.5}', b'{"step": 2, "loss": 0.25}']
    bad = [b'{"step": 1, "loss\xff": 2}', b'{"step": NaN}', b"[" * 200_000, b'{"step": [1]}', b"\0\0"]
    folder.metrics.write_bytes(b"\n".join([good[0], *bad, good[1]]) + b"\n")
    folder.forget_after(1)
    assert folder.metrics.read_bytes() == good[0] + b"\n"
    assert (folder.path / "superseded.jsonl").read_bytes() == b"\n".join([*bad, good[1]]) + b"\n"


def test_metrics_that_cannot_be_written_do_not_end_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(tmp_path / "run")
    folder.metrics.mkdir()
    (folder.path / "schedule.txt").mkdir()
    for step in (1, 2):
        folder.write(step=step)
        folder.write_text("schedule.txt", "text")
    folder.forget_after(1)
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 2
    for name, line in zip(("metrics.jsonl", "schedule.txt"), warnings, strict=True):
        assert line.startswith(f"trainer: warning: {folder.path / name} cannot be written (")
    folder.metrics.rmdir()
    folder.write(step=3)
    assert objects(folder) == [{"step": 3}]


def test_a_line_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "run")
    folder.write(step=1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (folder.metrics.stat().st_size + 5, before[1]))  # a full disk
    try:
        folder.write(step=2)
        logging.getLogger("somewhere").info("x" * 1000)
        logging.getLogger("somewhere").info("x" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    folder.write(step=3)
    assert objects(folder) == [{"step": 1}, {"step": 3}]


def test_a_rank_without_a_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run" / "logs" / "rank1.log").mkdir(parents=True)
    folder_of(tmp_path / "run", rank=1)
    assert "trainer: warning: " in capsys.readouterr().err


def test_the_folder_is_left_without_a_lock(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "run")
    assert (folder.path / "lock.json").exists()
    folder.close()
    assert not (folder.path / "lock.json").exists()
