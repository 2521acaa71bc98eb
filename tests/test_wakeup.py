"""A wake-up wakes a sleeper, is not lost when it comes early, and does no harm where no rank is."""

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


def test_wakes_a_sleeper(job: str) -> None:
    sleeper, waker = WakeupSocket(job, 0, [0, 1]), WakeupSocket(job, 1, [0, 1])
    start = time.monotonic()
    threading.Timer(0.1, waker.wake, [[0]]).start()
    sleeper.sleep(LONG)
    assert 0.1 <= time.monotonic() - start < LONG


def test_an_early_wakeup_is_not_lost(job: str) -> None:
    sleeper, waker = WakeupSocket(job, 0, [0, 1]), WakeupSocket(job, 1, [0, 1])
    waker.wake([0])
    start = time.monotonic()
    sleeper.sleep(LONG)
    assert time.monotonic() - start < LONG


def test_many_wakeups_wake_once(job: str) -> None:
    sleeper, waker = WakeupSocket(job, 0, [0, 1]), WakeupSocket(job, 1, [0, 1])
    for _ in range(1000):  # more than the socket holds
        waker.wake([0])
    sleeper.sleep(LONG)
    start = time.monotonic()
    sleeper.sleep(0.05)
    assert time.monotonic() - start >= 0.05


def test_drained_wakeups_wake_no_one(job: str) -> None:
    sleeper, waker = WakeupSocket(job, 0, [0, 1]), WakeupSocket(job, 1, [0, 1])
    waker.wake([0])
    sleeper.drain()
    start = time.monotonic()
    sleeper.sleep(0.05)
    assert time.monotonic() - start >= 0.05


def test_ranks_of_other_nodes_and_ranks_that_have_exited(job: str) -> None:
    waker = WakeupSocket(job, 1, [0, 1])
    waker.wake([0, 5])  # 0 never opened its socket, 5 is on another node
    late = WakeupSocket(job, 5, [5])
    start = time.monotonic()
    late.sleep(0.05)
    assert time.monotonic() - start >= 0.05


def test_a_name_that_is_taken(job: str) -> None:
    first = open_wakeup_socket(job, 0, [0])
    assert first is not None
    assert open_wakeup_socket(job, 0, [0]) is None
