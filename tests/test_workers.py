"""Clean processes that work for this one: what they answer, raise, and how they end."""

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from trainer.distributed.workers import Answer, Worker
from trainer.errors import TrainingError, UserError

PATH = "tests.test_workers:serve"


def serve(size: int) -> Answer:
    def answer(request: object) -> Iterator[object]:
        if request == "raise":
            raise UserError("this request is wrong")
        if request == "rank":
            yield [name for name in os.environ if name.startswith("OMPI_")]
            return
        yield np.arange(size), np.zeros((2, 3), dtype=np.float32), request
        yield "end"

    return answer


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    made = Worker(PATH, 100_000, title="helper 1")
    yield made
    made.end()


def test_it_answers_in_order(worker: Worker) -> None:
    worker.ask("one")
    worker.ask("two")
    for request in ("one", "two"):
        large, small, echo = worker.answer()
        assert np.array_equal(large, np.arange(100_000))
        large += 1  # its own memory
        small += 1
        assert echo == request
        assert worker.answer() == "end"


def test_what_it_raises_is_raised_here(worker: Worker) -> None:
    worker.ask("raise")
    with pytest.raises(UserError, match=r"^this request is wrong$") as caught:
        worker.answer()
    assert "in answer" in str(caught.value.__cause__)
    worker.ask("again")
    assert worker.answer()[2] == "again"
    worker.answer()


def test_it_is_no_rank(worker: Worker) -> None:
    worker.ask("rank")
    assert worker.answer() == []


def test_a_killed_one_is_named(worker: Worker) -> None:
    lost = Worker(PATH, 1, title="helper 2")
    os.kill(lost.process, signal.SIGKILL)
    lost.ask("anything")
    with pytest.raises(
        TrainingError, match=re.escape(f"helper 2 (process {lost.process}) was ended by SIGKILL")
    ):
        lost.answer()
    assert not Path(f"/proc/{lost.process}").exists()


def test_it_ignores_the_signals_of_ranks_and_ends_with_its_socket(worker: Worker) -> None:
    worker.ask("ready")
    assert worker.answer()[2] == "ready"
    assert worker.answer() == "end"
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        os.kill(worker.process, number)
    worker.ask("still there")
    assert worker.answer()[2] == "still there"
    worker.answer()
    worker.end()
    assert not Path(f"/proc/{worker.process}").exists()


def test_what_cannot_be_pickled_is_refused() -> None:
    with pytest.raises(UserError, match="helper 3 cannot be given what it works with"):
        Worker(PATH, lambda: None, title="helper 3")
