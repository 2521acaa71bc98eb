"""What a signal does to a process: in start-up, while it trains, again, and in the end."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Timer

import pytest

from tests.support.launch import REPOSITORY
from trainer.distributed.notice import SIGNALS

RANK_0 = {**os.environ, "OMPI_COMM_WORLD_RANK": "0"}  # as mpirun starts it
LIMIT = 60.0  # seconds

SETUP = """
import hashlib, os, signal, sys, time
from trainer.distributed import notice
notice.listen()
"""
TRAINING = "notice.begin_training(lambda: 'rerun')"
READY = "print('ready', flush=True)"
ENDLESS = (
    "hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)"  # as in `fsync`: Python calls handlers after it
)
UNTIL_NOTICED = """
while not notice.received():
    time.sleep(0.01)
print(signal.Signals(notice.received()).name, flush=True)
"""


@contextmanager
def running(*code: str, env: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """Run code that prints "ready" once a signal may come; kill it in the end."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", "\n".join([SETUP, *code])]
    process = subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=env, cwd=REPOSITORY
    )
    limit = Timer(LIMIT, process.kill)
    limit.start()
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        limit.cancel()
        process.kill()
        process.communicate()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


@pytest.mark.parametrize("busy", ["time.sleep(1000)", ENDLESS])
def test_start_up_ends_at_once(busy: str) -> None:
    """Also where the main thread is in a long call; a scheduler may run it again."""
    with running(READY, busy) as process:
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate()
        assert said == "trainer: SIGTERM before there is anything to save: nothing is lost, run again\n"
        assert process.returncode == 75


@pytest.mark.parametrize("number", SIGNALS)
def test_training_goes_on_and_knows(number: signal.Signals) -> None:
    with running(TRAINING, READY, UNTIL_NOTICED, "sys.stdin.readline()") as process:
        process.send_signal(number)
        assert line(process) == number.name
        assert process.communicate("end\n") == ("", "")
        assert process.returncode == 0


def test_one_request_may_come_twice() -> None:
    """A scheduler signals the launcher, which passes it on, and the ranks."""
    with running(TRAINING, READY, UNTIL_NOTICED, "sys.stdin.readline()") as process:
        process.send_signal(signal.SIGUSR1)
        process.send_signal(signal.SIGTERM)
        assert line(process) in ("SIGUSR1", "SIGTERM")
        assert process.communicate("end\n") == ("", "")


def test_second_signal_ends_at_once() -> None:
    with running(TRAINING, READY, UNTIL_NOTICED, ENDLESS) as process:
        process.send_signal(signal.SIGUSR1)
        assert line(process) == "SIGUSR1"
        again = Timer(1.0, process.send_signal, (signal.SIGTERM,))
        again.start()
        _, said = process.communicate()
        assert said == "trainer: SIGTERM, a second signal, ends the run at once; rerun\n"
        assert process.returncode == 128 + signal.SIGTERM


def test_a_finished_run_ignores_a_signal() -> None:
    with running(TRAINING, "notice.end_training(stopped=False)", READY, "sys.stdin.readline()") as process:
        process.send_signal(signal.SIGTERM)
        assert process.communicate("end\n") == ("", "")
        assert process.returncode == 0


def test_a_failed_run_dies_of_a_signal() -> None:
    with running(TRAINING, "notice.stop_listening()", READY, "time.sleep(1000)") as process:
        process.send_signal(signal.SIGTERM)
        assert process.communicate() == ("", "")
        assert process.returncode == -signal.SIGTERM


def test_mpirun_ends_the_job() -> None:
    """It sends SIGCONT, a second later SIGTERM, then SIGKILL: the rank says in time how to resume."""
    with running(TRAINING, READY, "time.sleep(1000)", env=RANK_0) as process:
        process.send_signal(signal.SIGCONT)
        Timer(1.0, process.send_signal, (signal.SIGTERM,)).start()
        Timer(2.0, process.kill).start()
        assert process.communicate() == ("", "trainer: SIGTERM from mpirun, which ends the run; rerun\n")


def test_mpirun_ends_the_job_in_start_up() -> None:
    """Another rank has failed, and says why."""
    with running(READY, "time.sleep(1000)", env=RANK_0) as process:
        process.send_signal(signal.SIGCONT)
        Timer(1.0, process.send_signal, (signal.SIGTERM,)).start()
        assert process.communicate() == ("", "")


def test_one_rank_of_a_node_speaks() -> None:
    """Where the launcher passes a signal on to all of them."""
    job = RANK_0 | {"PMIX_NAMESPACE": str(os.getpid())}
    with (
        running(READY, "time.sleep(1000)", env=job) as one,
        running(READY, "time.sleep(1000)", env=job) as two,
    ):
        for process in (one, two):
            process.send_signal(signal.SIGUSR1)
        said = "".join(process.communicate()[1] for process in (one, two))
        assert said.count("\n") == 1
        assert "SIGTERM or SIGUSR1 before there is anything to save" in said  # horovodrun passes on either


def test_mpich_names_both_signals_too() -> None:
    """Also there, horovodrun passes on SIGTERM as SIGUSR1."""
    with running(READY, "time.sleep(1000)", env={**os.environ, "MPI_LOCALNRANKS": "1"}) as process:
        process.send_signal(signal.SIGUSR1)
        assert process.communicate()[1].startswith("trainer: SIGTERM or SIGUSR1 before there is anything")


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    """As under nohup."""
    ignore = "signal.signal(signal.SIGHUP, signal.SIG_IGN); notice.listen()"
    with running(ignore, READY, "sys.stdin.readline()") as process:
        process.send_signal(signal.SIGHUP)
        assert process.communicate("end\n") == ("", "")
        assert process.returncode == 0


def test_a_signal_that_the_launcher_blocks() -> None:
    """As MPICH leaves SIGTERM, which `horovodrun` blocks for mpirun, blocked in the ranks."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        with running(TRAINING, READY, UNTIL_NOTICED) as process:
            process.send_signal(signal.SIGTERM)
            assert process.communicate() == ("SIGTERM\n", "")
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def test_child_process_dies_without_a_word() -> None:
    """One that loads data is terminated when training ends."""
    code = """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # from Python 3.12 on, in a process with threads
child = os.fork()
if child == 0:
    print("ready", flush=True)
    time.sleep(1000)
sys.stdin.readline()
os.kill(child, signal.SIGTERM)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    with running(TRAINING, code) as process:
        assert process.communicate("end\n") == (f"{-signal.SIGTERM}\n", "")
