"""Run a step of the set-up: its output goes to a log file, its progress to one line."""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

PLAIN_INTERVAL = 30.0
"""Seconds between two progress lines when the output is not a terminal."""


class StepFailedError(Exception):
    """A step's command exited with a code other than 0; `log` has its output."""

    def __init__(self, title: str, code: int, log: Path) -> None:
        super().__init__(f"{title}: exit code {code}, see {log}")
        self.title = title
        self.log = log


def run_step(
    title: str,
    command: Sequence[str],
    *,
    log: Path,
    env: Mapping[str, str],
    detail: Callable[[str], str] | None = None,
    cwd: Path | None = None,
) -> None:
    """Run a command, and show the seconds it has taken so far.

    Args:
        title: The step's name, as shown to the user.
        command: The program and its arguments.
        log: The file for everything that the command prints.
        env: The command's environment.
        detail: Turns the end of the log into what is shown beside the seconds.
        cwd: The folder to run in.

    Raises:
        StepFailedError: The command failed.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    line = _ProgressLine(title)
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=dict(env), cwd=cwd
        )
        try:
            while process.poll() is None:
                line.show(detail(log_end(log)) if detail else "")
                time.sleep(0.2)
        except BaseException:
            process.terminate()
            process.wait()
            raise
    line.end("failed" if process.returncode else "")
    if process.returncode:
        raise StepFailedError(title, process.returncode, log)


def log_end(log: Path, size: int = 4000) -> str:
    """Return the last `size` bytes of a log as text."""
    with log.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - size))
        return file.read().decode(errors="replace")


def cmake_percent(text: str) -> str:
    """Return the progress of a CMake build, such as `45 %`, from the end of its output."""
    found: list[str] = re.findall(r"\[\s*(\d+)%\]", text)
    return f"{found[-1]} %" if found else ""


def pip_activity(text: str) -> str:
    """Return the last line in which pip says what it is doing."""
    lines = [
        line.strip()
        for line in text.splitlines()
        if line.startswith(("Collecting", "  Downloading", "Installing"))
    ]
    return lines[-1] if lines else ""


class _ProgressLine:
    """One line, rewritten every second on a terminal; elsewhere, a new line now and then."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._start = time.monotonic()
        self._terminal = sys.stdout.isatty()
        self._next = self._start + (0.0 if self._terminal else PLAIN_INTERVAL)

    def show(self, detail: str) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        text = f"  {self._title:<28}{now - self._start:6.0f} s  {detail}"
        if self._terminal:
            print(f"\r\x1b[K{text[:100]}", end="", flush=True)
            self._next = now + 1.0
        else:
            print(text.rstrip(), flush=True)
            self._next = now + PLAIN_INTERVAL

    def end(self, detail: str) -> None:
        start = "\r\x1b[K" if self._terminal else ""
        print(
            f"{start}  {self._title:<28}{time.monotonic() - self._start:6.0f} s  {detail}".rstrip(),
            flush=True,
        )
