"""Waiting neither spins nor returns late."""

import sys
import threading
import time
from collections.abc import Iterator
from uuid import uuid4

import pytest

from trainer.distributed import waiting
from trainer.distributed.waiting import WaitMeter, can_be_woken_by, use_wakeup_socket, wait
from trainer.distributed.wakeup import WakeupSocket

LONG = 0.3  # seconds


def test_ready_at_once() -> None:
    polls = []
    assert 0.0 <= wait(lambda: polls.append(1) is None) < 0.05  # one poll, and no sleep
    assert len(polls) == 1


def test_idle_wait_costs_little() -> None:
    end = time.perf_counter() + 1.0
    before = time.process_time()
    waited = wait(lambda: time.perf_counter() >= end)
    assert time.process_time() - before < 0.05
    assert waited == pytest.approx(1.0, abs=0.5)


def test_returns_the_seconds_until_it_was_ready() -> None:
    answers = iter([False] * 5 + [True])
    assert wait(lambda: next(answers)) > 0.0
    assert list(answers) == []  # polled until the first true, and no more


def test_a_meter_adds_up() -> None:
    meter, began = WaitMeter(), time.perf_counter()
    for _ in range(2):
        end = time.perf_counter() + LONG
        meter.wait(lambda end=end: time.perf_counter() >= end)  # type: ignore[misc]
    assert 2 * LONG <= meter.seconds <= time.perf_counter() - began
    before = meter.seconds
    meter.wait(lambda: True)
    assert before <= meter.seconds < before + 0.05


class Polled:
    """Becomes ready after some seconds, and counts the polls."""

    def __init__(self, seconds: float) -> None:
        self.end = time.perf_counter() + seconds
        self.times = 0

    def __call__(self) -> bool:
        self.times += 1
        return time.perf_counter() >= self.end


@pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets are Linux's")
class TestWakeups:
    @pytest.fixture(autouse=True)
    def other(self) -> Iterator[WakeupSocket]:
        """Return the socket of rank 1, whose neighbour this process is."""
        job = uuid4().hex
        use_wakeup_socket(WakeupSocket(job, 0, [0, 1]))
        yield WakeupSocket(job, 1, [0, 1])
        waiting._sockets.clear()

    def test_ranks_of_its_node_can_wake_it(self) -> None:
        assert can_be_woken_by(1)
        assert not can_be_woken_by(0)
        assert not can_be_woken_by(2)

    def test_it_polls_rarely_where_it_expects_a_wakeup(self) -> None:
        polled = Polled(LONG)
        wait(polled, expects_wakeup=True)
        assert polled.times < LONG / waiting._LONG_SLEEP * waiting._POLLS + 10

    def test_it_returns_at_once_when_woken(
        self, other: WakeupSocket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(waiting, "_LONG_SLEEP", 100 * LONG)
        sent = threading.Event()

        def send() -> None:
            sent.set()
            other.wake([0])

        threading.Timer(LONG, send).start()
        assert wait(sent.is_set, expects_wakeup=True) < 10 * LONG

    def test_it_polls_often_after_a_wakeup(
        self, other: WakeupSocket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(waiting, "_LONG_SLEEP", 100 * LONG)
        monkeypatch.setattr(waiting, "_ALERT", 10 * LONG)
        threading.Timer(LONG, other.wake, [[0]]).start()  # the rest of the message comes later
        assert 2 * LONG <= wait(Polled(2 * LONG), expects_wakeup=True) < 10 * LONG

    def test_it_looks_often_where_it_rang_before(
        self, other: WakeupSocket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(waiting, "_LONG_SLEEP", 100 * LONG)
        monkeypatch.setattr(waiting, "_ALERT", 10 * LONG)
        other.wake([0])  # for a message that has arrived only in part
        assert LONG <= wait(Polled(LONG), expects_wakeup=True) < 10 * LONG

    def test_an_earlier_wakeup_does_not_keep_it_awake(self, other: WakeupSocket) -> None:
        other.wake([0])
        polled = Polled(LONG)
        wait(polled, expects_wakeup=True)
        assert polled.times < LONG / waiting._LONG_SLEEP * waiting._POLLS + 50
