"""Hosts ask one another what their ranks do; a rank that is silent differs from a host that is cut off."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.support.launch import REPOSITORY
from trainer.watch.hosts import Hosts, Place, own_addresses
from trainer.watch.process import Work, is_busy, state_of, work_of
from trainer.watch.seen import CUT, SILENT, UNKNOWN, Seen

ANSWERS = """
import sys
from trainer.watch.hosts import Answers
from trainer.watch.seen import Seen
answers = Answers(lambda: [Seen(1, "h2", step=4), Seen(2, "h2", step=5)])
answers.begin("word")
print(answers.port, flush=True)
sys.stdin.read()
"""
NOWHERE = "203.0.113.7"  # of no host, by RFC 5737


@pytest.fixture
def other() -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Return a process that answers, and its port."""
    process = subprocess.Popen(
        [sys.executable, "-c", ANSWERS],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    yield process, int(process.stdout.readline())
    process.kill()
    process.wait()


def hosts(port: int, *addresses: str, token: str = "word") -> Hosts:
    return Hosts([Place(0, "h1", (), 1), Place(1, "h2", addresses, port)], "h1", token)


def test_an_answer(other: tuple[subprocess.Popen[str], int]) -> None:
    asking = hosts(other[1], NOWHERE, "127.0.0.1")
    assert asking.ask() == [Seen(1, "h2", step=4), Seen(2, "h2", step=5)]


def test_a_stopped_process_is_silent_while_its_host_answers(
    other: tuple[subprocess.Popen[str], int],
) -> None:
    process, port = other
    asking = hosts(port, "127.0.0.1")
    asking.ask()
    process.send_signal(signal.SIGSTOP)
    while state_of(process.pid) != "T":
        pass
    (seen,) = asking.ask()
    assert (seen.state, seen.step) == (SILENT, 4)
    process.send_signal(signal.SIGCONT)
    assert {seen.state for seen in asking.ask()} == {"S"}


def test_an_ended_process_is_silent_too(other: tuple[subprocess.Popen[str], int]) -> None:
    process, port = other
    asking = hosts(port, "127.0.0.1")
    asking.ask()
    process.kill()
    process.wait()
    (seen,) = asking.ask()
    assert seen.state == SILENT


def test_a_host_that_was_there_and_is_out_of_reach(other: tuple[subprocess.Popen[str], int]) -> None:
    """A socket whose queue is full stands for it: the kernel drops what comes, and does not answer."""
    asking = hosts(other[1], "127.0.0.1")
    asking.ask()
    (host,) = asking._hosts.values()
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, ExitStack() as waiting:
        for _ in range(4):
            connection = waiting.enter_context(socket.socket())
            connection.setblocking(False)
            connection.connect_ex(full.getsockname())
        host.places = [Place(1, "h2", ("127.0.0.1",), full.getsockname()[1])]
        (seen,) = asking.ask()
    assert (seen.state, seen.step) == (CUT, 4)


def test_a_host_that_never_could_be_asked() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    (seen,) = hosts(port, "127.0.0.1").ask()
    assert (seen.state, seen.still) == (UNKNOWN, float("inf"))


def test_strangers_get_no_answer(other: tuple[subprocess.Popen[str], int]) -> None:
    (seen,) = hosts(other[1], "127.0.0.1", token="guess").ask()
    assert seen.state == UNKNOWN


def test_addresses_are_of_this_host() -> None:
    for address in own_addresses():
        with socket.create_server((address, 0)):
            pass
    assert not any(address.startswith("127.") for address in own_addresses())


def test_a_process_that_computes_and_one_that_is_stopped() -> None:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    before = after = work_of(process.pid)
    assert before is not None
    while after is not None and after.main - before.main < 0.05:
        after = work_of(process.pid)
    assert after is not None
    assert is_busy(before, after, 1.0, saves=False, lenient=False)
    process.send_signal(signal.SIGSTOP)
    while state_of(process.pid) != "T":
        pass
    process.kill()
    process.wait()
    assert state_of(process.pid) == ""


def test_what_counts_as_work() -> None:
    before = Work(1.0, 5.0, 0)
    assert not is_busy(before, Work(1.05, 5.5, 0), 10, saves=False, lenient=False)
    assert is_busy(before, Work(1.2, 5.2, 0), 10, saves=False, lenient=False)
    assert is_busy(before, Work(1.0, 6.1, 0), 10, saves=False, lenient=False)
    assert is_busy(before, Work(1.0, 5.01, 0), 10, saves=False, lenient=True)
    assert is_busy(before, Work(1.0, 5.0, 20 << 20), 10, saves=True, lenient=False)
    assert not is_busy(before, Work(1.0, 5.0, 20 << 20), 10, saves=False, lenient=False)
