"""Whole families of processes: a launcher and the ranks that it has started."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

import psutil


def end_on_sigterm() -> None:
    """Let SIGTERM raise SystemExit, so that what this process has started is ended too."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def signal_family(process: int, what: str) -> None:
    """Suspend, resume or kill a process and all that it has started, directly or not.

    Args:
        process: Its number.
        what: A method of `psutil.Process`.
    """
    try:
        family = [psutil.Process(process)]
        family += family[0].children(recursive=True)
    except psutil.NoSuchProcess:
        return
    for each in family:
        try:
            getattr(each, what)()
        except psutil.NoSuchProcess:
            continue


def run(command: Sequence[str], environment: Mapping[str, str] = os.environ) -> tuple[int, str, str]:
    """Run a command to its end; if this process is ended meanwhile, nothing of the command goes on.

    Returns:
        Its exit code, its standard output and its standard error.
    """
    launched = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = launched.communicate()
    except BaseException:
        signal_family(launched.pid, "suspend")  # a launcher that is stopped starts no more ranks
        signal_family(launched.pid, "kill")
        launched.wait()
        raise
    return launched.returncode, out, err
