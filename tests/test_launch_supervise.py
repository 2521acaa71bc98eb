"""The supervisor of mpirun, with a stand-in for it: real processes, real signals."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer
from uuid import uuid4

import pytest

from tests.support.launch import REPOSITORY

LIMIT = 60.0  # seconds
LOST = REPOSITORY / "tests/fixtures/open_mpi_words/lost_host.txt"

# Says that it is ready, and leaves only if it is killed.
STUCK = """
import signal, sys, time
signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGUSR1, signal.SIGINT))
sys.stderr.write(open(sys.argv[1]).read() if sys.argv[1:] else "")
sys.stderr.write("ready\\n")
sys.stderr.flush()
time.sleep(1000)
"""

SUPERVISE = """
import sys
from trainer.launch import supervise
from trainer.launch.job import say
supervise._TO_END = 0.5
mark, grace, *command = sys.argv[1:]
signals = supervise.listen()
ended = supervise.Supervisor(
    command, {"TRAINER_JOB": mark}, signals, mark=mark, grace=float(grace), say=say, hide=lambda text: None
).run()
print(ended.code, ended.asked)
"""


@contextmanager
def supervised(*command: str, grace: float = 1000.0) -> Iterator[subprocess.Popen[str]]:
    arguments = [sys.executable, "-c", SUPERVISE, uuid4().hex, str(grace), sys.executable, *command]
    pipe = subprocess.PIPE
    process = subprocess.Popen(arguments, cwd=REPOSITORY, stdout=pipe, stderr=pipe, text=True)
    limit = Timer(LIMIT, process.kill)
    limit.start()
    try:
        yield process
    finally:
        limit.cancel()
        process.kill()
        process.wait()


@pytest.fixture
def stuck(tmp_path: Path) -> str:
    script = tmp_path / "stuck.py"
    script.write_text(STUCK)
    return str(script)


def wait_until_ready(process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    while process.stderr.readline() not in ("ready\n", ""):
        pass


def test_mpirun_that_says_that_the_job_ends_and_does_not_is_killed(stuck: str) -> None:
    with supervised(stuck, str(LOST)) as process:
        out, err = process.communicate()
    assert out == "1 False\n"
    assert "trainer.launch: host h3 is lost" in err
    assert "mpirun said 0.5 s ago that the job ends, and the job still ran: killed" in err
    assert "ready" in err


@pytest.mark.parametrize(
    ("numbers", "code", "why"),
    [
        ([signal.SIGTERM], 137, "SIGTERM 0.2 s ago (--grace)"),
        ([signal.SIGINT], 130, "SIGINT 0.5 s ago"),
        ([signal.SIGINT, signal.SIGQUIT], 130, ", a second time"),
    ],
)
def test_what_ignores_signals_is_killed(
    numbers: list[signal.Signals], code: int, why: str, stuck: str
) -> None:
    with supervised(stuck, grace=0.2) as process:
        wait_until_ready(process)
        for number in numbers:
            os.kill(process.pid, number)
        out, err = process.communicate()
    assert out == f"{code} True\n"
    assert why in err


def test_a_signal_before_mpirun_can_take_it() -> None:
    """It has not replaced SIGUSR1's default yet, and dies of it."""
    with supervised("-c", "import sys, time; print('ready', file=sys.stderr); time.sleep(1000)") as process:
        wait_until_ready(process)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate()
    assert out == "75 True\n"
    assert "before the ranks started: nothing is lost, run again" in err


@pytest.mark.parametrize(("exits", "code"), [("sys.exit(7)", 7), ("os.kill(os.getpid(), 9)", 137)])
def test_codes(exits: str, code: int) -> None:
    with supervised("-c", f"import os, sys; {exits}") as process:
        assert process.communicate()[0] == f"{code} False\n"
