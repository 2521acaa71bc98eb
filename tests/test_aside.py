"""Work in a fork of this process."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable

import pytest
import torch

from trainer.distributed import aside
from trainer.distributed.aside import Outcome, Send, run_aside

CHANGED: list[int] = []


def work(send: Send) -> None:
    CHANGED.append(1)
    x = torch.ones(3, requires_grad=True)
    (x * x).sum().backward()  # type: ignore[no-untyped-call]
    send((os.getpid(), x.grad.tolist() if x.grad is not None else None))


def test_work_is_done_elsewhere_and_changes_nothing_here() -> None:
    outcome = run_aside(work, 30.0)
    assert outcome.died is None
    ((process, gradient),) = outcome.sent
    assert process != os.getpid()
    assert gradient == [2.0, 2.0, 2.0]
    assert not CHANGED


def test_where_autograd_refuses_to_run_in_a_fork_it_is_forked_differently(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in a process that sees a GPU and has run a backward."""
    monkeypatch.setattr(aside, "_autograd_runs", lambda: False)
    assert run_aside(work, 30.0).sent[0][1] == [2.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "it was ended by SIGKILL"),
        (lambda: os._exit(3), "it ended with exit code 3"),
        (lambda: time.sleep(60), "it took longer than 0.3 s"),
    ],
)
def test_an_early_end_is_reported_with_what_was_sent(end: Callable[[], object], words: str) -> None:
    def dies(send: Send) -> None:
        send(1)
        end()

    assert run_aside(dies, 0.3) == Outcome([1], words)


def test_an_error_comes_with_its_traceback() -> None:
    def fails(_send: Send) -> None:
        raise ValueError("three")

    with pytest.raises(ValueError, match="three") as caught:
        run_aside(fails, 30.0)
    assert "in fails" in str(caught.value.__cause__)


def test_threads_that_want_the_interpreter() -> None:
    """A fork without the libraries' handlers does not wait for them."""
    done = threading.Event()

    def work() -> None:
        while not done.is_set():
            sum(range(100))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        outcome = aside._run_in(aside._fork_without_handlers, lambda send: send("here"), patience=20.0)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert outcome is not None
    assert (outcome.sent, outcome.died) == (["here"], None)
    assert sys.getswitchinterval() < 0.1
