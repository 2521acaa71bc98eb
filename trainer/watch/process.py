"""What the kernel says of a process: its state, the time it computes, and whether its disk writes."""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
_COMPUTES = 0.10  # of a core, all threads: Horovod's alone takes less
_MAIN_COMPUTES = 0.01  # of a core, the main thread: in a wait it does not run at all
_WRITES = 1 << 20  # bytes per second that reach disks


@dataclass(frozen=True)
class Work:
    """What a process has done so far.

    Attributes:
        main: Seconds that its main thread has computed.
        total: Seconds that it and those that it has started have computed.
        written: Bytes that this machine has written to disks.
    """

    main: float
    total: float
    written: int


def state_of(process: int) -> str:
    """Return the kernel's letter for a process's state, such as "S", "T" or "D"; empty if it is gone."""
    fields = _stat(Path(f"/proc/{process}/stat"))
    return "" if fields is None or fields[0] in "ZXx" else fields[0]


def work_of(process: int) -> Work | None:
    """Return what a process has done; None if it is gone."""
    fields = _stat(Path(f"/proc/{process}/stat"))
    main = _stat(Path(f"/proc/{process}/task/{process}/stat"))
    if fields is None or main is None:
        return None
    seconds = _seconds(fields) + sum(map(_seconds, _descendants(process)))
    return Work(_seconds(main), seconds, _written())


def is_busy(before: Work, after: Work, seconds: float, *, saves: bool, lenient: bool) -> bool:
    """Return whether a process has worked in between, rather than wait for something.

    Args:
        before: What it had done.
        after: What it has done since.
        seconds: The time in between.
        saves: Whether it writes files: then disks that write count.
        lenient: Whether anything at all counts, as while it starts.
    """
    main, total = after.main - before.main, after.total - before.total
    if saves and after.written - before.written > _WRITES * seconds:
        return True
    if lenient and total > 0:
        return True
    return main >= _MAIN_COMPUTES * seconds or total >= _COMPUTES * seconds


def is_debugged(process: int) -> bool:
    """Return whether a debugger, such as gdb or py-spy, holds a process."""
    with suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("TracerPid:"):
                return line.split()[1] != "0"
    return False


def _stat(path: Path) -> list[str] | None:
    """Return the fields from the state on: the name before it may contain anything."""
    try:
        return path.read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None


def _seconds(fields: list[str]) -> float:
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _descendants(process: int) -> list[list[str]]:
    found = []
    with suppress(OSError):
        for task in Path(f"/proc/{process}/task").iterdir():
            children = (task / "children").read_text()
            for child in map(int, children.split()):
                fields = _stat(Path(f"/proc/{child}/stat"))
                found += [] if fields is None else [fields, *_descendants(child)]
    return found


def _written() -> int:
    with suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("nr_written "):
                return int(line.split()[1]) * os.sysconf("SC_PAGESIZE")
    return 0
