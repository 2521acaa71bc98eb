"""Wake-ups between the ranks of a node: the sender wakes the receiver, so waiting is low-latency and idle.

MPI can only be polled for a message. Infrequent polling adds latency; frequent polling takes a core that
another rank computes on. So a waiting rank sleeps on a socket, and a rank that has sent a message also sends
a byte to that socket. Between nodes there are no wake-ups, and the receiver polls.
"""

import contextlib
import select
import socket
import sys
from collections.abc import Iterable


class WakeupSocket:
    """The socket that wakes a rank; through it the rank also wakes the others of its node.

    Args:
        job: A name that all ranks of this run share, and no other run.
        rank: This rank of the world.
        neighbours: The ranks of the world that are on this node.
    """

    def __init__(self, job: str, rank: int, neighbours: Iterable[int]) -> None:
        self._job = job
        self._neighbours = set(neighbours) - {rank}
        # An abstract address leaves no file behind, however the process ends.
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(self._address(rank))

    def wake(self, ranks: Iterable[int]) -> None:
        """Wake those ranks of the world that are on this node and asleep."""
        for rank in self._neighbours.intersection(ranks):
            try:
                self._socket.sendto(b"\0", self._address(rank))
            except BlockingIOError:  # its queue is full: it will wake anyway
                continue
            except OSError:  # it has exited, or runs in another container
                self._neighbours.discard(rank)

    def can_be_woken_by(self, rank: int) -> bool:
        """Return whether a rank of the world is on this node and can wake this one."""
        return rank in self._neighbours

    def sleep(self, seconds: float) -> bool:
        """Sleep until woken, or for `seconds`; return whether this rank was woken."""
        woken = bool(select.select([self._socket], [], [], seconds)[0])
        if woken:
            self.drain()
        return woken

    def drain(self) -> bool:
        """Discard pending wake-ups; return whether there were any."""
        woken = False
        with contextlib.suppress(BlockingIOError):
            while True:
                woken = bool(self._socket.recv(1))
        return woken

    def _address(self, rank: int) -> str:
        return f"\0{self._job}-{rank}"


def open_wakeup_socket(job: str, rank: int, neighbours: Iterable[int]) -> WakeupSocket | None:
    """Return this rank's wake-up socket, or None where the system cannot provide one."""
    if sys.platform != "linux":
        return None
    try:
        return WakeupSocket(job, rank, neighbours)
    except OSError:
        return None
