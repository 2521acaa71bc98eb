"""Waiting neither spins nor is late."""

import sys
import threading
import time
from collections.abc import Iterator
from uuid import uuid4

import pytest

from trainer.distributed import waiting
from trainer.distributed.waiting import WaitMeter, hears, listen, wait
from trainer.distributed.wakeup import WakeupSocket

LONG = 0.3  # seconds


def test_ready_at_once() -> None:
    asked = []
    assert 0.0 <= wait(lambda: asked.append(1) is None) < 0.05  # what asking takes, and no sleep
    assert len(asked) == 1


def test_idle_wait_costs_little() -> None:
    end = time.perf_counter() + 1.0
    before = time.process_time()
    waited = wait(lambda: time.perf_counter() >= end)
    assert time.process_time() - before < 0.05
    assert waited == pytest.approx(1.0, abs=0.5)


def test_returns_the_seconds_until_it_was_ready() -> None:
    answers = iter([False] * 5 + [True])
    assert wait(lambda: next(answers)) > 0.0
    assert list(answers) == []  # asked until the first true, and no more


def test_a_meter_adds_up() -> None:
    meter, began = WaitMeter(), time.perf_counter()
    for _ in range(2):
        end = time.perf_counter() + LONG
        meter.wait(lambda end=end: time.perf_counter() >= end)  # type: ignore[misc]
    assert 2 * LONG <= meter.seconds <= time.perf_counter() - began
    before = meter.seconds
    meter.wait(lambda: True)
    assert before <= meter.seconds < before + 0.05


class Looked:
    """Is ready from a moment on, and counts how often it was asked."""

    def __init__(self, seconds: float) -> None:
        self.end = time.perf_counter() + seconds
        self.times = 0

    def __call__(self) -> bool:
        self.times += 1
        return time.perf_counter() >= self.end


@pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets are Linux's")
class TestBell:
    @pytest.fixture(autouse=True)
    def other(self) -> Iterator[WakeupSocket]:
        """Return the bell of rank 1, whose neighbour this process is."""
        job = uuid4().hex
        listen(WakeupSocket(job, 0, [0, 1]))
        yield WakeupSocket(job, 1, [0, 1])
        waiting._bells.clear()

    def test_it_hears_those_of_its_node(self) -> None:
        assert hears(1)
        assert not hears(0)
        assert not hears(2)

    def test_it_looks_seldom_where_the_bell_will_ring(self) -> None:
        seldom = Looked(LONG)
        wait(seldom, rings=True)
        assert seldom.times < LONG / waiting._SELDOM * waiting._QUESTIONS + 10

    def test_it_comes_at_once_when_it_rings(
        self, other: WakeupSocket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(waiting, "_SELDOM", 100 * LONG)
        sent = threading.Event()

        def send() -> None:
            sent.set()
            other.ring([0])

        threading.Timer(LONG, send).start()
        assert wait(sent.is_set, rings=True) < 10 * LONG

    def test_it_looks_often_behind_a_ring(self, other: WakeupSocket, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(waiting, "_SELDOM", 100 * LONG)
        monkeypatch.setattr(waiting, "_ALERT", 10 * LONG)
        threading.Timer(LONG, other.ring, [[0]]).start()  # the rest of the message comes later
        assert 2 * LONG <= wait(Looked(2 * LONG), rings=True) < 10 * LONG

    def test_it_looks_often_where_it_rang_before(
        self, other: WakeupSocket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(waiting, "_SELDOM", 100 * LONG)
        monkeypatch.setattr(waiting, "_ALERT", 10 * LONG)
        other.ring([0])  # for a message that is under way
        assert LONG <= wait(Looked(LONG), rings=True) < 10 * LONG

    def test_one_that_rang_before_does_not_keep_it_awake(self, other: WakeupSocket) -> None:
        other.ring([0])
        looked = Looked(LONG)
        wait(looked, rings=True)
        assert looked.times < LONG / waiting._SELDOM * waiting._QUESTIONS + 50
