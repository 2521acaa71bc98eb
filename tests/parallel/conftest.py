"""Pools of ranks, a small GPT on a small text, and runs that several tests share."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.support.launch import Result
from tests.support.pools import Pools
from tests.support.runs import GPT, Finished, Ranks, Trained
from tests.support.verifying import GPT as VERIFIED
from tests.support.verifying import verify


@pytest.fixture(scope="session")
def pools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pools]:
    """Return pools of ranks that take many jobs."""
    started = Pools(lambda: tmp_path_factory.mktemp("pool"))
    yield started
    started.end()


@pytest.fixture(scope="session")
def small(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the overrides for a small GPT on a small text, tokenised once a session."""
    return [
        "experiment=small",
        f"data.path={text_file}",
        f"data.cache={tmp_path_factory.mktemp('cache')}",
        "run.dir=run",
        "threads=1",
        "device=cpu",
    ]


@pytest.fixture(scope="session")
def finished(pools: Pools, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Return a function that trains on some ranks, once a session for the same overrides."""

    @cache
    def train(ranks: int, *overrides: str) -> Finished:
        folder = tmp_path_factory.mktemp("run")
        return Finished(pools.run(ranks, overrides, folder).check(), folder / "run")

    return train


@pytest.fixture(scope="session")
def trained(finished: Trained, small: list[str]) -> Trained:
    """Return a function that trains the GPT on some ranks, once a session for the same overrides."""

    def train(ranks: int, *overrides: str) -> Finished:
        return finished(ranks, *small, *GPT, *overrides)

    return train


@pytest.fixture
def run_small(pools: Pools, small: list[str], tmp_path: Path) -> Ranks:
    """Return a function that runs the trainer on some ranks, in the test's folder."""
    return lambda ranks, *overrides: pools.run(ranks, [*small, *overrides], tmp_path)


@pytest.fixture
def verified(pools: Pools, small: list[str], tmp_path: Path) -> Ranks:
    """Return a function that verifies the GPT on some ranks, optionally with a mutation."""

    def run(ranks: int, *overrides: str, mutation: str | None = None) -> Result:
        return verify(pools, ranks, [*small, *VERIFIED, *overrides], tmp_path, mutation)

    return run
