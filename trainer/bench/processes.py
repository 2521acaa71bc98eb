"""Process trees: a launcher and the ranks that it started."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

import psutil


def exit_on_sigterm() -> None:
    """Raise SystemExit on SIGTERM, so that this process can stop the processes it started."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def signal_family(process: int, method: str) -> None:
    """Suspend, resume or kill a process and all its descendants.

    Args:
        process: The process's number.
        method: The name of a method of `psutil.Process`.
    """
    try:
        family = [psutil.Process(process)]
        family += family[0].children(recursive=True)
    except psutil.NoSuchProcess:
        return
    for each in family:
        try:
            getattr(each, method)()
        except psutil.NoSuchProcess:
            continue


def run(command: Sequence[str], environment: Mapping[str, str] = os.environ) -> tuple[int, str, str]:
    """Run a command to its end; kill its full process tree if this process is interrupted.

    Returns:
        The exit code, the standard output and the standard error.
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
        signal_family(launched.pid, "suspend")  # a suspended launcher starts no more ranks
        signal_family(launched.pid, "kill")
        launched.wait()
        raise
    return launched.returncode, out, err
