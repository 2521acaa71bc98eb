"""Whether the kernel has killed a process because memory ran out: it counts that, in three places."""

import os
from contextlib import suppress
from pathlib import Path

_V1 = "/sys/fs/cgroup/memory"
_V2 = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")


class Killings:
    """How many processes the kernel has killed for memory since this was made, near one process.

    Args:
        process: The process, which lives.
    """

    def __init__(self, process: int) -> None:
        self._files = [*_control_groups(process), Path("/proc/vmstat")]
        self.limit = _limit(self._files)
        self._before = [_count(file) for file in self._files]

    def happened(self) -> bool:
        """Return whether there was one."""
        return any(
            now is not None and before is not None and now > before
            for now, before in zip(map(_count, self._files), self._before, strict=True)
        )


def _control_groups(process: int) -> list[Path]:
    """Return the files that count for a process's control groups, of version 1 and 2."""
    found = []
    with suppress(OSError):
        for line in Path(f"/proc/{process}/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            inside = path.lstrip("/")
            if "memory" in controllers.split(","):
                found.append(Path(_V1, inside, "memory.oom_control"))
            elif not controllers:
                found += [Path(root, inside, "memory.events") for root in _V2]
    return [file for file in found if os.access(file, os.R_OK)]


def _count(file: Path) -> int | None:
    with suppress(OSError, ValueError):
        for line in file.read_text().splitlines():
            name, _, number = line.partition(" ")
            if name == "oom_kill":
                return int(number)
    return None


def _limit(files: list[Path]) -> int | None:
    """Return the limit of the control groups, in bytes; None if there is none."""
    limits = []
    for file in files:
        for name in ("memory.max", "memory.limit_in_bytes"):
            with suppress(OSError, ValueError):
                limits.append(int(file.with_name(name).read_text()))
    return min((limit for limit in limits if limit < 1 << 60), default=None)
