"""`python -m trainer.launch` on this machine: its exit code is the cause's, and nothing is left."""

import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.launch import Launch, code_of_killed, run
from tests.support.runs import GPT

pytestmark = pytest.mark.parallel

SOON = 20.0  # seconds
LONG = ["train.steps=100000", "layout.stages=2", "progress=line", "eval.every=0", "generate.tokens=0"]


def launcher(overrides: Sequence[str], *options: str, ranks: int = 2) -> list[str]:
    return [sys.executable, "-m", "trainer.launch", "-np", str(ranks), *options, *overrides]


@pytest.fixture
def long(small: list[str]) -> list[str]:
    """Return the overrides of a run that does not end by itself."""
    return [*small, *GPT, *LONG]


def started(overrides: Sequence[str], folder: Path, *options: str) -> Launch:
    launched = Launch(launcher(overrides, *options), folder)
    launched.wait_for("step 1/")
    return launched


def test_training(small: list[str], tmp_path: Path) -> None:
    steps = ["train.steps=2", "layout.stages=2", "eval.every=0", "generate.tokens=0"]
    result = run(launcher([*small, *GPT, *steps]), tmp_path).check()
    assert "2 ranks = 1 replica x 2 stages" in result.out
    assert result.err == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_notice_saves(number: signal.Signals, long: list[str], tmp_path: Path) -> None:
    launched = started(long, tmp_path)
    launched.signal_launcher(number)
    result = launched.wait(SOON + launched.seconds)
    assert result.code == 75, result.err
    assert not result.left_over
    (line,) = result.err.splitlines()
    assert line.startswith("trainer: stopped by SIG")
    assert list((tmp_path / "run/checkpoints").iterdir())


def test_a_killed_rank(long: list[str], tmp_path: Path) -> None:
    launched = started(long, tmp_path)
    launched.signal_rank(1, signal.SIGKILL)
    result = launched.wait(SOON + launched.seconds)
    assert result.code == code_of_killed()
    assert not result.left_over
    assert "trainer.launch: rank 1 on host " in result.err
    assert "was killed by SIGKILL" in result.err
    assert "-----" not in result.err
    (kept,) = (tmp_path / "run/logs").glob("mpirun-*.log")
    assert "mpirun noticed that process rank 1" in kept.read_text()


def test_control_c(long: list[str], tmp_path: Path) -> None:
    launched = started(long, tmp_path)
    launched.signal_group(signal.SIGINT)
    result = launched.wait(SOON + launched.seconds)
    assert result.code == 130
    assert not result.left_over


def test_a_rank_that_does_not_end_is_killed_after_the_grace(long: list[str], tmp_path: Path) -> None:
    launched = started(long, tmp_path, "--grace", "2")
    launched.signal_rank(1, signal.SIGSTOP)
    began = time.monotonic()
    launched.signal_launcher(signal.SIGTERM)
    result = launched.wait(SOON + launched.seconds)
    assert time.monotonic() - began >= 2
    assert result.code == 137
    assert not result.left_over
    assert "trainer.launch: SIGTERM 2 s ago (--grace), and the job still ran: killed" in result.err


def test_what_a_rank_leaves_is_killed(tmp_path: Path) -> None:
    """A process of its own session, which mpirun knows nothing of, and whose code is not the job's."""
    (tmp_path / "leaves.py").write_text(
        "import subprocess, sys\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1000)'], start_new_session=True)\n"
        "sys.exit(3)\n"
    )
    result = run(launcher([], "--module", "leaves", ranks=1), tmp_path)
    assert result.code == 3
    assert not result.left_over
    assert "trainer.launch: killed 1 processes left on this host, such as: " in result.err
    assert "time.sleep(1000)" in result.err


def test_the_ranks_do_not_outlive_the_launcher(long: list[str], tmp_path: Path) -> None:
    launched = started(long, tmp_path)
    launched.signal_launcher(signal.SIGKILL)
    result = launched.wait(SOON + launched.seconds)
    assert result.code == -signal.SIGKILL
    assert not result.left_over


def test_the_ranks_own_refusal_passes(small: list[str], tmp_path: Path) -> None:
    result = run(launcher([*small, *GPT, "data.path=nothing.txt"]), tmp_path)
    assert result.code == 2
    assert len(result.messages) == 1
    assert "-----" not in result.err


def test_starts_again_until_it_has_saved_no_more(tmp_path: Path) -> None:
    """A stand-in for a run that stops early at once: it makes progress twice, then none."""
    (tmp_path / "stops.py").write_text(
        "import pathlib, sys\n"
        "folder = pathlib.Path('run/checkpoints')\n"
        "folder.mkdir(parents=True, exist_ok=True)\n"
        "starts = pathlib.Path('starts')\n"
        "number = len(starts.read_text()) if starts.exists() else 0\n"
        "starts.write_text('x' * (number + 1))\n"
        "(folder / f'step-{min(number, 1):08d}').mkdir(exist_ok=True)\n"
        "sys.exit(75)\n"
    )
    result = run(launcher(["run.dir=run"], "--requeue", "--module", "stops", ranks=1), tmp_path)
    assert result.code == 75
    assert (tmp_path / "starts").read_text() == "x" * 5  # three of them from step 1
    assert result.err.count("started again") == 4
    assert "started 3 times without a step: given up" in result.err


def test_measured_links(tmp_path: Path) -> None:
    result = run([sys.executable, "-m", "trainer.launch", "-np", "2", "--check"], tmp_path).check()
    assert "latency" in result.out
    planned = [sys.executable, "-m", "trainer.plan", "ranks=4", "cluster=cluster.json", "experiment=small"]
    assert "4 ranks" in run(planned, tmp_path).check().out
