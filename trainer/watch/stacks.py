"""The Python stacks of the ranks of a node, also of one that holds Python's lock or crashes.

Every rank has faulthandler write its stack into a file in memory when a signal comes. Others of the same user
read it through /proc; they keep it open, for what a crash wrote there.
"""

import contextlib
import faulthandler
import os
import signal
import time

from trainer.distributed.heartbeat import Word, heartbeat

_SIGNAL = signal.SIGRTMIN + 7 if hasattr(signal, "SIGRTMIN") else None
_POLL = 0.02  # seconds


def offer_stack(*, crashes: bool) -> None:
    """Let others ask for this process's stack.

    Args:
        crashes: Whether a crash writes it there too, where others read it; if not, it is printed.
    """
    if _SIGNAL is None or not hasattr(os, "memfd_create"):
        return
    file = os.memfd_create("trainer-stack", os.MFD_CLOEXEC)
    faulthandler.register(_SIGNAL, file=file, all_threads=True)
    if not faulthandler.is_enabled():  # the user's own choice is kept
        faulthandler.enable(file=file if crashes else 2)
    heartbeat.words[Word.STACK] = file + 1


class Stack:
    """Another process's stack.

    Args:
        process: Its number.
        file: The descriptor that it has there.
    """

    def __init__(self, process: int, file: int) -> None:
        self._process = process
        self._file = os.open(f"/proc/{process}/fd/{file}", os.O_RDONLY | os.O_CLOEXEC)

    def written(self, start: int = 0) -> str:
        """Return what has been written from a position on."""
        size = os.fstat(self._file).st_size
        return os.pread(self._file, max(0, size - start), start).decode(errors="replace")

    def ask(self) -> int:
        """Ask the process to write its stack; return where that starts."""
        start = os.fstat(self._file).st_size
        if _SIGNAL is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process, _SIGNAL)
        return start

    def close(self) -> None:
        """Forget the process."""
        os.close(self._file)


def ask_all(stacks: dict[int, Stack], patience: float) -> dict[int, str]:
    """Return the stacks of processes, by rank; those that do not write in time are left out."""
    starts = {rank: stack.ask() for rank, stack in stacks.items()}
    end = time.monotonic() + patience
    sizes: dict[int, int] = {}
    while time.monotonic() < end:
        time.sleep(_POLL)
        before, sizes = sizes, {rank: len(stack.written(starts[rank])) for rank, stack in stacks.items()}
        if all(sizes.values()) and sizes == before:
            break
    texts = {rank: stack.written(starts[rank]) for rank, stack in stacks.items()}
    return {rank: text for rank, text in texts.items() if text}
