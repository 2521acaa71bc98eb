"""Settings and fixtures that all tests share."""

import gc
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from tests.support.sentences import sentences
from tests.support.thorough import collected, is_thorough

# The same cases in every run: a failure comes from the change under test, not from chance.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

# Under nohup, or in the background of a script, these are ignored: what tests start would ignore them too.
for _number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL)

# One thread in every test: tests compare bits, and more threads would add in a different order.
torch.set_num_threads(1)

_SIZE = 200_000  # bytes


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep tests that share ranks in one process (pytest-xdist only)."""
    from tests.support.scheduling import Groups  # noqa: PLC0415  (pytest-xdist may not be installed)

    return Groups(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that `make test` leaves out."""
    collected[:] = [item.nodeid for item in items]
    for item in items:
        if is_thorough(item.nodeid):
            item.add_marker("thorough")


def pytest_collection_finish() -> None:
    """Keep garbage collections out of the modules and tests, which stay."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of sentences that a small model can learn from."""
    path = tmp_path_factory.mktemp("text") / "sentences.txt"
    path.write_text(sentences(_SIZE))
    return path
