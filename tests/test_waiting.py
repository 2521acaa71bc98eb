"""Waiting neither spins nor is late."""

import time

import pytest

from trainer.waiting import wait


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
