"""Runs a small program of the standard library on hosts, all at once, under a time limit."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.launch.command_line import passed_on
from trainer.launch.place import Reach, is_here

LIMIT = 10.0  # seconds
ANSWER = "trainer-launch-answer "  # begins the line of the answer: a shell's start-up files may print others
_AGENT, _OPTIONS = "OMPI_MCA_plm_rsh_agent", "OMPI_MCA_plm_rsh_args"  # as the MPI operator sets them
_KEPT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")


@dataclass(frozen=True)
class Answer:
    """What a host's program says.

    Attributes:
        host: The host's name.
        value: What it answers; None where it failed.
        complaint: Why it failed, in one line.
    """

    host: str
    value: Any
    complaint: str = ""


def ask(
    hosts: Sequence[str], reach: Reach, script: Path, given: Mapping[str, Any], limit: float = LIMIT
) -> list[Answer]:
    """Run a script on hosts, by this Python's path, and return its answers in their order.

    Args:
        hosts: Their names; this machine's own needs no connection.
        reach: How to get to the others.
        script: A file that reads JSON from standard input, and prints `ANSWER` and JSON.
        given: What it reads.
        limit: Seconds for all.
    """
    here = [host for host in hosts if is_here(host)]
    others = [host for host in hosts if not is_here(host)]
    program = [sys.executable, "-c", script.read_text(encoding="utf-8")]
    text = json.dumps(dict(given))
    running: dict[tuple[str, ...], subprocess.Popen[str]] = {}
    running |= {(host,): _start(program, text) for host in here}
    if others and reach is Reach.SRUN:
        running[tuple(others)] = _start([*_srun(others, limit), *program], text)
    elif others:
        remote = shlex.join(["env", *_settings(), *program])
        running |= {(host,): _start([*ssh(host, limit), remote], text) for host in others}
    end = time.monotonic() + limit
    answers: dict[str, Answer] = {}
    for names, process in running.items():
        answers |= {answer.host: answer for answer in _collect(process, names, end, limit)}
    return [answers[host] for host in hosts]


def ssh(host: str, limit: float = LIMIT) -> list[str]:
    """Return the command that runs another on a host, as mpirun would reach it."""
    agent = shlex.split(os.environ.get(_AGENT, "ssh").partition(":")[0])
    options = shlex.split(os.environ.get(_OPTIONS, ""))
    if Path(agent[0]).name == "ssh":
        options += ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={max(1, int(limit) - 2)}"]
    return [*agent, *options, host]


def _srun(hosts: Sequence[str], limit: float) -> list[str]:
    number = str(len(hosts))
    return [
        *("srun", "--overlap", "--mpi=none", "--cpu-bind=none", f"--nodes={number}", f"--ntasks={number}"),
        *("--ntasks-per-node=1", f"--nodelist={','.join(hosts)}", "--kill-on-bad-exit=0", "--quiet"),
        *(f"--immediate={max(1, int(limit) - 2)}", "--chdir=/"),
    ]


def _settings() -> list[str]:
    """Return what the program needs of this process's variables."""
    kept = [name for name in passed_on(os.environ) if name in _KEPT]
    return [f"{name}={os.environ[name]}" for name in kept]


def _start(command: Sequence[str], text: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,  # a Ctrl-C is the launcher's to handle
        env={name: value for name, value in os.environ.items() if name != "SLURM_TASKS_PER_NODE"},
    )
    assert process.stdin is not None
    try:
        process.stdin.write(text)
        process.stdin.close()
    except BrokenPipeError:  # it says why on its standard error
        pass
    process.stdin = None
    return process


def _collect(
    process: "subprocess.Popen[str]", names: Sequence[str], end: float, limit: float
) -> list[Answer]:
    """Return what a process's hosts answer until a point in time."""
    try:
        out, err = process.communicate(timeout=max(0.1, end - time.monotonic()))
        complaint = (err.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
    except subprocess.TimeoutExpired:
        process.kill()
        out, _ = process.communicate()
        complaint = f"no answer within {limit:g} s"
    values = {}
    for line in out.splitlines():
        if line.startswith(ANSWER):
            answer = json.loads(line[len(ANSWER) :])
            values[answer.get("node") or names[0]] = answer
    alone = len(names) == 1
    found = {name: next(iter(values.values()), None) if alone else values.get(name) for name in names}
    return [Answer(name, found[name], "" if found[name] is not None else complaint) for name in names]
