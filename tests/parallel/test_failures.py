"""A rank that fails, is killed or interrupted ends all ranks, soon, and leaves none behind.

Signals that ask a run to save and stop: `test_stops.py`.
"""

import os
import signal
from pathlib import Path

import pytest

from tests.support.launch import Launch, code_of_killed, horovodrun, is_mpich

pytestmark = pytest.mark.parallel

SOON = 15.0  # seconds
ENDLESS = [
    "experiment=simplenet",
    "train.epochs=1000000",
    "progress=line",
    "run.dir=run",
    "threads=1",
    "device=cpu",
]


def start(folder: Path, *overrides: str) -> Launch:
    return Launch(horovodrun(2, [*ENDLESS, "layout.stages=2", *overrides]), folder)


@pytest.mark.quick
def test_exception_on_one_rank(tmp_path: Path) -> None:
    launched = start(tmp_path, "model=custom", "data=binary", "model.target=tests.support.models:failing")
    launched.wait_for("run folder: ")
    result = launched.wait(SOON + launched.seconds)
    assert result.code == 1
    assert result.err.count("Traceback (most recent call last)") == 1
    assert result.err.count("ArithmeticError: this layer fails on purpose") == 1
    assert "rank 1 failed" in result.err
    assert "MPI_ABORT" not in result.err  # Open MPI's own words on how this ends
    assert "<stderr>" not in result.err
    assert not result.left_over


def test_killed_rank(tmp_path: Path) -> None:
    launched = start(tmp_path, "data.workers=1")
    launched.wait_for("step 1/")
    os.kill(launched.rank(1), signal.SIGKILL)
    result = launched.wait(SOON + launched.seconds)
    assert result.code == code_of_killed()
    assert not result.left_over


def test_killed_data_worker(tmp_path: Path) -> None:
    launched = start(tmp_path, "data.workers=1")
    launched.wait_for("step 1/")
    os.kill(child_of(launched.rank(1)), signal.SIGKILL)
    result = launched.wait(SOON + launched.seconds)
    assert result.code == 1
    assert result.err.count("trainer: error: ") == 1
    assert "data worker 0 of 1 of rank 1 (process " in result.err
    assert "was ended by SIGKILL" in result.err
    assert not result.left_over


def child_of(process: int) -> int:
    """Return the one process that a rank has started."""
    (child,) = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return int(child)


def test_interrupted(tmp_path: Path) -> None:
    """Ctrl-C: mpirun kills the ranks after two seconds, in the last of which they may still save."""
    launched = start(tmp_path, "checkpoint.every=2", "checkpoint.keep=0", "data.workers=1")
    launched.wait_for_file(tmp_path / "run/checkpoints/step-00000002/manifest.json")
    launched.signal_group(signal.SIGINT)
    result = launched.wait(SOON + launched.seconds)
    assert result.code != 0
    assert "Traceback" not in result.out + result.err
    printed = [line for line in result.err.splitlines() if line.startswith("trainer: ")]
    assert len(printed) == 1
    assert "rerun with run.dir=run to resume from step-0000" in printed[0]
    assert not result.left_over


def test_launcher_alone_is_killed(tmp_path: Path) -> None:
    launched = start(tmp_path)
    launched.wait_for("step 1/")
    launched.signal_launcher(signal.SIGKILL)
    result = launched.wait(SOON + launched.seconds)
    assert result.code != 0
    assert not result.left_over


def test_a_lost_rank_before_a_checkpoint(tmp_path: Path) -> None:
    if is_mpich():
        pytest.skip("MPICH kills the other ranks before they can say anything")
    launched = start(tmp_path, "checkpoint.minutes=0")
    launched.wait_for("step 1/")
    os.kill(launched.rank(1), signal.SIGKILL)
    result = launched.wait(SOON + launched.seconds)
    assert "no checkpoint was saved yet (checkpoint.minutes=0, checkpoint.every=0)" in result.err
