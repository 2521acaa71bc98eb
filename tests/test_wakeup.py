"""A bell wakes who sleeps, is not lost when it rings before, and does no harm where nobody is."""

import sys
import threading
import time
from uuid import uuid4

import pytest

from trainer.distributed.wakeup import WakeupSocket, open_wakeup_socket

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets are Linux's")
LONG = 30.0  # seconds


@pytest.fixture
def job() -> str:
    return uuid4().hex


def test_it_wakes_a_sleeper(job: str) -> None:
    sleeper, ringer = WakeupSocket(job, 0, [0, 1]), WakeupSocket(job, 1, [0, 1])
    start = time.monotonic()
    threading.Timer(0.1, ringer.ring, [[0]]).start()
    sleeper.sleep(LONG)
    assert 0.1 <= time.monotonic() - start < LONG


def test_it_is_not_lost_when_it_rings_too_early(job: str) -> None:
    sleeper, ringer = WakeupSocket(job, 0, [0, 1]), WakeupSocket(job, 1, [0, 1])
    ringer.ring([0])
    start = time.monotonic()
    sleeper.sleep(LONG)
    assert time.monotonic() - start < LONG


def test_it_wakes_once_however_often_it_rang(job: str) -> None:
    sleeper, ringer = WakeupSocket(job, 0, [0, 1]), WakeupSocket(job, 1, [0, 1])
    for _ in range(1000):  # more than the socket holds
        ringer.ring([0])
    sleeper.sleep(LONG)
    start = time.monotonic()
    sleeper.sleep(0.05)
    assert time.monotonic() - start >= 0.05


def test_what_was_forgotten_wakes_nobody(job: str) -> None:
    sleeper, ringer = WakeupSocket(job, 0, [0, 1]), WakeupSocket(job, 1, [0, 1])
    ringer.ring([0])
    sleeper.forget()
    start = time.monotonic()
    sleeper.sleep(0.05)
    assert time.monotonic() - start >= 0.05


def test_ranks_of_other_nodes_and_ranks_that_are_gone(job: str) -> None:
    ringer = WakeupSocket(job, 1, [0, 1])
    ringer.ring([0, 5])  # 0 has never come, 5 is on another node
    late = WakeupSocket(job, 5, [5])
    start = time.monotonic()
    late.sleep(0.05)
    assert time.monotonic() - start >= 0.05


def test_a_name_that_is_taken(job: str) -> None:
    first = open_wakeup_socket(job, 0, [0])
    assert first is not None
    assert open_wakeup_socket(job, 0, [0]) is None
