"""A run that a signal terminates says how to resume, wherever its main thread is."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer

LIMIT = 60.0  # seconds

SETUP = """
import hashlib, os, signal, sys, time
from trainer.distributed.failure import print_resume_hint_when_terminated
print_resume_hint_when_terminated(lambda: "rerun")
"""
HINT = "trainer: terminated by a signal; rerun\n"


@contextmanager
def running(code: str) -> Iterator[subprocess.Popen[str]]:
    """Run code that prints "ready" once a signal may come; kill it in the end."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", f"{SETUP}\n{code}"]
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
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


def test_main_thread_in_a_long_call() -> None:
    """As in `fsync`: Python calls handlers after it, but the launcher kills the rank before."""
    endless = "hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)"
    with running(f"print('ready', flush=True); {endless}") as process:
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        assert process.stderr.readline() == HINT


def test_process_dies_of_the_signal() -> None:
    with running("print('ready', flush=True); time.sleep(1000)") as process:
        process.send_signal(signal.SIGTERM)
        assert process.communicate() == ("", HINT)
        assert process.returncode == -signal.SIGTERM


def test_child_process_dies_without_a_word() -> None:
    """One that loads data is terminated when training ends."""
    code = """
child = os.fork()
if child == 0:
    print("ready", flush=True)
    time.sleep(1000)
sys.stdin.readline()
os.kill(child, signal.SIGTERM)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    with running(code) as process:
        assert process.communicate("end\n") == (f"{-signal.SIGTERM}\n", "")
