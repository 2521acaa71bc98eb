"""Finds, and ends, what a job has left on a host: run on every host, as text; and imported by the launcher.

Reads from standard input `{"mark": ..., "patience": seconds, "kill": bool}`. A process belongs to the job if
its environment or, as Open MPI's daemons, its command line has the mark. It imports the standard library
alone.
"""

import json
import os
import signal
import sys
import time

_POLL = 0.05  # seconds


def main() -> None:
    """Look, and kill; print what was there."""
    given = json.load(sys.stdin)
    if given["kill"]:
        left = sweep(given["mark"], given["patience"])
    else:
        left = [command(process) for process in bearers(given["mark"])]
    node = os.environ.get("SLURMD_NODENAME", "")
    print("trainer-launch-answer " + json.dumps({"node": node, "left": left}))


def sweep(mark: str, patience: float) -> "list[str]":
    """Wait until the job's processes have ended, then kill those that have not; return their commands."""
    end = time.monotonic() + patience
    while bearers(mark) and time.monotonic() < end:
        time.sleep(_POLL)
    killed: dict[int, str] = {}
    for _ in range(100):  # also what a process starts while it is killed
        running = bearers(mark)
        if not running:
            break
        for process in running:
            killed.setdefault(process, command(process))
            try:
                os.kill(process, signal.SIGKILL)
            except OSError:  # it has ended
                killed.pop(process)
        time.sleep(_POLL)
    return [killed[process] for process in sorted(killed)]


def bearers(mark: str) -> "list[int]":
    """Return the processes that bear a mark, without this one."""
    wanted, found = mark.encode(), []
    for name in os.listdir("/proc"):  # noqa: PTH208
        if not name.isdigit() or int(name) == os.getpid():
            continue
        if wanted in _read(name, "environ") or wanted in _read(name, "cmdline"):
            found.append(int(name))
    return found


def command(process: int) -> str:
    """Return a process's command, or nothing once it has ended."""
    return _read(str(process), "cmdline").replace(b"\0", b" ").decode(errors="replace").strip()[:200]


def _read(process: str, name: str) -> bytes:
    """Return a file of a process that is ours and has not ended; a zombie has no text there."""
    try:
        with open(f"/proc/{process}/{name}", "rb") as file:  # noqa: PTH123
            return file.read()
    except OSError:
        return b""


if __name__ == "__main__":
    main()
