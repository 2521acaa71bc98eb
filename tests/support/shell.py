"""Runs a script of `launch/` in a folder where programs of clusters note how they are called."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

_RECORDER = """#!/bin/bash
{ printf '%s\\n' "${0##*/}" "$@"; echo "pid $$"; } >> "$CALLS"
exit "${CODE:-0}"
"""


class Cluster:
    """A folder to submit from, with a `.venv`, and programs that note their calls.

    Args:
        folder: An empty folder.
        programs: The names of the programs.
        code: The exit code of `python` and `srun`; the others exit with 0.
    """

    def __init__(self, folder: Path, programs: Sequence[str], code: int = 0) -> None:
        self.folder = folder
        self._calls = folder / "calls"
        bin_folder = folder / ".venv" / "bin"
        bin_folder.mkdir(parents=True)
        (bin_folder / "activate").write_text(f'PATH="{bin_folder}:$PATH"\n')
        for name in programs:
            program = bin_folder / name
            fails = code if name in ("python", "srun") else 0
            program.write_text(_RECORDER.replace("${CODE:-0}", str(fails)))
            program.chmod(0o755)
        self._path = f"{bin_folder}{os.pathsep}{os.environ['PATH']}"

    def start(
        self, script: Path, arguments: Sequence[str] = (), variables: Mapping[str, str] | None = None
    ) -> "subprocess.Popen[str]":
        """Start a script as a scheduler does: from a copy elsewhere, with its variables."""
        spooled = self.folder / "spool" / "job_script"
        spooled.parent.mkdir(exist_ok=True)
        spooled.write_text(script.read_text())
        return subprocess.Popen(
            ["bash", str(spooled), *arguments],
            cwd=self.folder,
            env={"PATH": self._path, "CALLS": str(self._calls), **(variables or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def calls(self) -> list[tuple[list[str], int]]:
        """Return the calls so far: a program with its arguments, and its process id."""
        found: list[tuple[list[str], int]] = []
        words: list[str] = []
        for line in self._calls.read_text().splitlines() if self._calls.exists() else []:
            if line.startswith("pid "):
                found.append((words, int(line.removeprefix("pid "))))
                words = []
            else:
                words.append(line)
        return found
