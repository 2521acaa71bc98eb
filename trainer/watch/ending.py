"""Ends all ranks of a job that cannot go on, on this host at least, whatever has become of the launcher."""

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from trainer.distributed.failure import DELIVERY, abort_from_thread, print_at_once

STALLED = 1  # a failure: whoever restarts on 75 would run into the same wall again
KILLED = 137  # as a launcher returns for a rank that the kernel has killed

_PATIENCE = 3.0  # seconds for MPI to end the ranks
_DISK = 2.0  # seconds for files to be written, by disks that may be the cause


def say(lines: Sequence[str]) -> None:
    """Print lines at once; the first with the trainer's name."""
    print_at_once("\n".join(lines))


def write_files(texts: dict[Path, str]) -> list[Path]:
    """Write small files, without waiting for a disk that does not answer; return those that were written."""
    written: list[Path] = []

    def write() -> None:
        for path, text in texts.items():
            with suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
                written.append(path)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    thread.join(_DISK)
    return list(written)


def end_all(code: int, kill_others: Callable[[], None]) -> NoReturn:
    """End all ranks with an exit code: by MPI, and if that does not come to it, those of this host."""

    def end_here() -> None:
        time.sleep(DELIVERY + _PATIENCE)
        kill_others()
        os._exit(code)

    threading.Thread(target=end_here, daemon=True).start()
    time.sleep(DELIVERY)
    abort_from_thread(code)
