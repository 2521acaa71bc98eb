"""Who sends a message on the same node wakes the one who waits for it: so waiting is both quick and idle.

MPI can only be asked, again and again, whether a message has come: seldom costs time, often costs a core that
another rank computes on. So a rank that waits sleeps on a socket, and a rank that has sent something sends a
byte there too. Between nodes nothing rings, and the one who waits looks by itself, as before.
"""

import contextlib
import select
import socket
import sys
from collections.abc import Iterable


class WakeupSocket:
    """A rank's bell, and those of the other ranks of its node.

    Args:
        job: A name that all ranks of this run share, and no other run.
        rank: This rank of the world.
        neighbours: The ranks of the world that are on this node.
    """

    def __init__(self, job: str, rank: int, neighbours: Iterable[int]) -> None:
        self._job = job
        self._neighbours = set(neighbours) - {rank}
        # An abstract address: it leaves no file behind, whatever becomes of the process.
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(self._address(rank))

    def ring(self, ranks: Iterable[int]) -> None:
        """Wake ranks of the world, as far as they are on this node and asleep."""
        for rank in self._neighbours.intersection(ranks):
            try:
                self._socket.sendto(b"\0", self._address(rank))
            except BlockingIOError:  # rung already, more than once
                continue
            except OSError:  # it has ended, or lives in another container
                self._neighbours.discard(rank)

    def hears(self, rank: int) -> bool:
        """Return whether a rank of the world is on this node, and can ring here."""
        return rank in self._neighbours

    def sleep(self, seconds: float) -> bool:
        """Return when the bell rings, or after so many seconds; whether it rang."""
        rang = bool(select.select([self._socket], [], [], seconds)[0])
        if rang:
            self.forget()
        return rang

    def forget(self) -> bool:
        """Forget that the bell has rung; whether it had."""
        rang = False
        with contextlib.suppress(BlockingIOError):
            while True:
                rang = bool(self._socket.recv(1))
        return rang

    def _address(self, rank: int) -> str:
        return f"\0{self._job}-{rank}"


def open_wakeup_socket(job: str, rank: int, neighbours: Iterable[int]) -> WakeupSocket | None:
    """Return this rank's bell, or None where the system has none to offer."""
    if sys.platform != "linux":
        return None
    try:
        return WakeupSocket(job, rank, neighbours)
    except OSError:
        return None
