"""horovodrun passes signals on to mpirun, so that ranks have the time to save; here to a stand-in for it."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer

import pytest

LIMIT = 60.0  # seconds
ROOT = Path(__file__).parents[1]

# Prints what it gets, and exits with a code of its own when it is asked to save.
MPIRUN = """
import os, signal, sys
numbers = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
blocked = signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ())
print("blocked" if blocked else "open", os.getpgrp() == os.getpid(), flush=True)
number = signal.sigwait(numbers)
print(signal.Signals(number).name, flush=True)
sys.exit(75)
"""


@contextmanager
def horovodrun(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Run the supervisor with a stand-in for mpirun, which has started."""
    script = folder / "mpirun.py"
    script.write_text(MPIRUN)
    start = "import os; from launch.install.supervise_mpirun import supervise; supervise({!r}, os.environ)"
    command = [sys.executable, "-c", start.format(f"{sys.executable} {script}")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    limit = Timer(LIMIT, os.killpg, (process.pid, signal.SIGKILL))
    limit.start()
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "blocked True\n"  # SIGTERM; and a process group of its own
        yield process
    finally:
        limit.cancel()
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("sent", "received"),
    [
        (signal.SIGTERM, "SIGUSR1"),
        (signal.SIGHUP, "SIGUSR1"),
        (signal.SIGUSR1, "SIGUSR1"),
        (signal.SIGUSR2, "SIGUSR1"),
        (signal.SIGINT, "SIGINT"),
    ],
)
@pytest.mark.parametrize("group", [False, True])
def test_signals_are_passed_on(sent: signal.Signals, received: str, group: bool, tmp_path: Path) -> None:
    with horovodrun(tmp_path) as process:
        (os.killpg if group else os.kill)(process.pid, sent)
        out, _ = process.communicate()
        assert out == f"{received}\n"
        assert process.returncode == 75


def test_before_the_ranks_start() -> None:
    start = "from launch.install.supervise_mpirun import end_at_once_before_ranks_start as e; e()"
    command = [sys.executable, "-c", f"{start}; print(flush=True); import time; time.sleep(1000)"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate()
    assert said == "horovodrun: SIGTERM before the ranks started: nothing is lost, run again\n"
    assert process.returncode == 75


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells mpirun")
def test_mpirun_does_not_outlive_horovodrun(tmp_path: Path) -> None:
    with horovodrun(tmp_path) as process:
        process.kill()
        out, _ = process.communicate()  # until mpirun closes its output
        assert out == "SIGINT\n"
