"""Memory-limited groups of processes: what the kernel kills when they ask for more."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_NAME = "trainer-test"


class Limited:
    """A group of processes that may use some memory, together.

    Attributes:
        folder: The group's folder of the kernel's memory controller.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def command(self, command: Sequence[str]) -> list[str]:
        """Return the command that runs one in the group."""
        return ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(self.folder), *command]

    def kills(self) -> int:
        """Return how many processes of the group the kernel has killed for want of memory."""
        names = ("memory.oom_control", "memory.events")
        text = next(file.read_text() for name in names if (file := self.folder / name).exists())
        found = re.search(r"^oom_kill (\d+)$", text, re.MULTILINE)
        assert found, text
        return int(found[1])


def controller() -> Path | None:
    """Return the folder of the kernel's memory controller; None if this machine has none for us."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, kind = line.partition(" - ")
        folder = Path(fields.split()[4])
        if kind.startswith("cgroup ") and re.search(r"[ ,]memory(,|$)", kind):
            return folder
        if kind.startswith("cgroup2 ") and "memory" in _read(folder / "cgroup.subtree_control").split():
            return folder
    return None


@contextmanager
def limited(size: int) -> Iterator[Limited]:
    """Make a group that may use `size` bytes; it must be empty at the end of the context.

    Raises:
        OSError: The machine has no memory controller (`controller` says so before).
    """
    parent = controller()
    if parent is None:
        raise OSError("no memory controller")
    for old in parent.glob(f"{_NAME}-*"):  # of tests that were killed
        if not Path(f"/proc/{old.name.split('-')[2]}").exists():
            old.rmdir()
    numbers = (number for number in range(1000) if not (parent / f"{_NAME}-{os.getpid()}-{number}").exists())
    folder = parent / f"{_NAME}-{os.getpid()}-{next(numbers)}"
    folder.mkdir()
    try:
        first_version = (folder / "memory.limit_in_bytes").exists()
        (folder / ("memory.limit_in_bytes" if first_version else "memory.max")).write_text(str(size))
        swap = folder / ("memory.memsw.limit_in_bytes" if first_version else "memory.swap.max")
        if swap.exists():
            swap.write_text(str(size) if first_version else "0")
        yield Limited(folder)
    finally:
        folder.rmdir()


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
