"""What ranks on other hosts do: asked over TCP, and only when something here stands still.

A host that takes the connection is there, even if the rank is stopped: the kernel takes it. A host that does
not has lost its link, or its power, provided that it could be reached before.
"""

import errno
import fcntl
import json
import selectors
import socket
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from trainer.watch.seen import CUT, SILENT, UNKNOWN, Seen

Address = tuple[str, int]
_PATIENCE = 1.5  # seconds for all answers of a round
_BACKLOG = 512  # connections to a stopped rank stay in its queue
_LONGEST = 1 << 22  # bytes of an answer
_ASKED = 4  # ranks of a host that are asked at once
_SIOCGIFADDR = 0x8915


@dataclass(frozen=True)
class Place:
    """Where a rank can be asked.

    Attributes:
        rank: Its number.
        host: Its host's name.
        addresses: Those of its host.
        port: Where it listens.
    """

    rank: int
    host: str
    addresses: tuple[str, ...]
    port: int


@dataclass
class _Host:
    """Another host.

    Attributes:
        places: Where its ranks can be asked.
        met: The addresses under which it has answered.
        silent: Since when it has been asked in vain; None: it has answered.
        cut: Since when it could not be connected to.
        seen: Its latest answer.
    """

    places: list[Place]
    met: set[Address] = field(default_factory=set)
    silent: float | None = None
    cut: float | None = None
    seen: list[Seen] = field(default_factory=list)


class Answers:
    """Answers those who ask what the ranks of this node do.

    Args:
        seen: Returns what they do.
    """

    def __init__(self, seen: Callable[[], Sequence[Seen]]) -> None:
        self._seen = seen
        self._socket = socket.create_server(("", 0), backlog=_BACKLOG)
        self._token = b""
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, name="heartbeat answers", daemon=True).start()

    def begin(self, token: str) -> None:
        """Answer those who know a word."""
        self._token = token.encode()

    def _serve(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            with connection, suppress(OSError, ValueError):
                connection.settimeout(_PATIENCE)
                if self._token and connection.recv(64) == self._token:
                    data = json.dumps([seen.plain() for seen in self._seen()]).encode()
                    connection.sendall(data + b"\n")


class Hosts:
    """The other hosts of the run.

    Args:
        places: Where all ranks can be asked.
        own: This host's name.
        token: The word that all ranks of the run share.
    """

    def __init__(self, places: Sequence[Place], own: str, token: str) -> None:
        self._token = token.encode()
        by_host: dict[str, list[Place]] = defaultdict(list)
        for place in places:
            by_host[place.host].append(place)
        self._hosts = {host: _Host(theirs) for host, theirs in by_host.items() if host != own}
        self._round = 0

    def ask(self) -> list[Seen]:
        """Ask every other host; return what is known of its ranks."""
        self._round += 1
        answers, connected = self._exchange()
        now = time.monotonic()
        found: list[Seen] = []
        for name, host in self._hosts.items():
            if name in answers:
                host.seen, host.silent, host.cut = answers[name], None, None
                found += self._complete(name, host, answers[name])
                continue
            host.silent = host.silent or now
            host.cut = None if name in connected else (host.cut or now)
            found += self._unanswered(name, host, now)
        return found

    def _complete(self, name: str, host: _Host, seen: list[Seen]) -> list[Seen]:
        """Return an answer, and the ranks of the host that are not in it as gone."""
        there = {each.rank for each in seen}
        missing = [place.rank for place in host.places if place.rank not in there]
        return [*seen, *(Seen(rank, name, UNKNOWN, float("inf")) for rank in missing)]

    def _unanswered(self, name: str, host: _Host, now: float) -> list[Seen]:
        last = {seen.rank: seen for seen in host.seen}
        if not host.met:
            state, still = UNKNOWN, float("inf")
        elif host.cut is not None:
            state, still = CUT, now - host.cut
        else:
            state, still = SILENT, now - (host.silent or now)
        found = []
        for place in host.places:
            values = last.get(place.rank, Seen(place.rank, name)).plain()
            found.append(Seen.of({**values, "state": state, "still": still, "busy": False}))
        return found

    def _exchange(self) -> tuple[dict[str, list[Seen]], set[str]]:
        """Return the answers, and the hosts that took a connection, by name."""
        answers: dict[str, list[Seen]] = {}
        connected: set[str] = set()
        with selectors.DefaultSelector() as selector:
            for name, host in self._hosts.items():
                for address in self._addresses(host):
                    self._connect(selector, name, address, connected)
            end = time.monotonic() + _PATIENCE
            while len(answers) < len(self._hosts) and selector.get_map():
                left = end - time.monotonic()
                if left <= 0:
                    break
                for key, _ in selector.select(left):
                    self._go_on(selector, key.data, answers, connected)
            for key in list(selector.get_map().values()):
                key.data.socket.close()
        return answers, connected

    def _addresses(self, host: _Host) -> list[Address]:
        """Return some addresses to ask: those that have answered, each rank in turn."""
        first = self._round * _ASKED
        count = len(host.places)
        places = [host.places[(first + i) % count] for i in range(min(_ASKED, count))]
        known = {address for address, _ in host.met}
        return [(each, place.port) for place in places for each in (known or place.addresses)]

    def _has_met(self, name: str, address: Address) -> bool:
        """Return whether a host has answered at an address, whatever the port."""
        return address[0] in {known for known, _ in self._hosts[name].met}

    def _connect(
        self, selector: selectors.BaseSelector, name: str, address: Address, connected: set[str]
    ) -> None:
        connection = socket.socket()
        connection.setblocking(False)
        error = connection.connect_ex(address)
        if error == errno.ECONNREFUSED and self._has_met(name, address):
            connected.add(name)
        if error not in (0, errno.EINPROGRESS):
            connection.close()
            return
        with suppress(OSError, ValueError, KeyError):
            selector.register(connection, selectors.EVENT_WRITE, _Question(name, address, connection))
            return
        connection.close()

    def _go_on(
        self,
        selector: selectors.BaseSelector,
        question: "_Question",
        answers: dict[str, list[Seen]],
        connected: set[str],
    ) -> None:
        try:
            done = self._answered(question, answers) if question.sent else self._asked(question, connected)
        except (OSError, ValueError, TypeError, KeyError):
            done = True
        if done:
            selector.unregister(question.socket)
            question.socket.close()
        elif question.sent:
            selector.modify(question.socket, selectors.EVENT_READ, question)

    def _asked(self, question: "_Question", connected: set[str]) -> bool:
        """Send a question once there is a connection; return whether there will be none."""
        error = question.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        # A refusal is an answer of the host as well.
        if error in (0, errno.ECONNREFUSED) and self._has_met(question.host, question.address):
            connected.add(question.host)
        if error == 0:
            question.socket.send(self._token)
            question.sent = True
        return error != 0

    def _answered(self, question: "_Question", answers: dict[str, list[Seen]]) -> bool:
        """Read a part of an answer; return whether it was the last."""
        data = question.socket.recv(1 << 16)
        question.answer += data
        if data and not question.answer.endswith(b"\n") and len(question.answer) < _LONGEST:
            return False
        host = self._hosts[question.host]
        seen = [Seen.of(values) for values in json.loads(question.answer)]
        if {place.rank for place in host.places} & {each.rank for each in seen}:
            answers.setdefault(question.host, seen)
            host.met.add(question.address)
        return True


@dataclass
class _Question:
    host: str
    address: Address
    socket: socket.socket
    sent: bool = False
    answer: bytes = b""


def own_addresses() -> tuple[str, ...]:
    """Return the IPv4 addresses of this host, without the loopback's."""
    found: list[str] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            with suppress(OSError):
                packed: Any = struct.pack("256s", name.encode()[:15])
                answer = fcntl.ioctl(any_socket.fileno(), _SIOCGIFADDR, packed)
                found.append(socket.inet_ntoa(answer[20:24]))
    return tuple(address for address in found if not address.startswith("127."))
