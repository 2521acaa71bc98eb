"""A pool takes one job after another, reports how a job failed, and is replaced when necessary."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from threading import Timer

import pytest

from tests.support.launch import code_of_killed, is_mpich
from tests.support.pool import Pool
from tests.support.pools import Pools

pytestmark = pytest.mark.parallel

SIMPLE = ["experiment=simplenet", "train.epochs=1", "run.dir=run", "threads=1", "device=cpu"]
FAILING = ["model=custom", "model.target=tests.support.models:failing", "layout.stages=2"]
ENDLESS = ["train.epochs=1000000", "checkpoint.every=0", "layout.stages=2"]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pools]:
    """Return pools for this module alone, as its tests break them."""
    started = Pools(lambda: tmp_path_factory.mktemp("pool"))
    yield started
    started.end()


def pool_of(own: Pools) -> Pool:
    return own.pool(2, 1, deterministic=False)


def assert_works(own: Pools, folder: Path) -> None:
    folder.mkdir()
    own.run(2, SIMPLE, folder).check()
    assert (folder / "run" / "metrics.jsonl").exists()


def test_exception_on_one_rank(own: Pools, tmp_path: Path) -> None:
    """The other rank waits for a message from the failed one; both end, and a new pool takes the next job."""
    pool = pool_of(own)
    result = own.run(2, [*SIMPLE, *FAILING], tmp_path)
    assert result.code == 1
    assert result.err.count("Traceback (most recent call last)") == 1
    assert "ArithmeticError: this layer fails on purpose" in result.err
    assert "rank 1 failed" in result.err
    assert not result.messages
    assert_ended(pool)
    assert_works(own, tmp_path / "next")


def test_killed_rank(own: Pools, tmp_path: Path) -> None:
    pool = pool_of(own)
    killer = Timer(2.0, os.kill, (pool.process(1), signal.SIGKILL))
    killer.start()
    result = own.run(2, [*SIMPLE, *ENDLESS], tmp_path)
    killer.join()
    assert result.code == code_of_killed()
    how = "ended with exit code" if is_mpich() else "was killed by signal"
    assert f"rank 1 {how} 9" in result.err
    assert_ended(pool)
    assert_works(own, tmp_path / "next")


def test_error_on_all_ranks(own: Pools, tmp_path: Path) -> None:
    """An error raised by all ranks is reported once, and the same ranks take the next job."""
    assert_works(own, tmp_path / "first")
    pool = pool_of(own)
    result = own.run(2, [*SIMPLE, "batch.global_size=0"], tmp_path)
    assert result.code == 2
    assert len(result.messages) == 1
    assert "batch.global_size" in result.messages[0]
    assert_works(own, tmp_path / "next")
    assert pool_of(own) is pool


def test_job_that_does_not_end(own: Pools, tmp_path: Path) -> None:
    pool = pool_of(own)
    with pytest.raises(AssertionError, match="a job had not ended in time"):
        own.run(2, [*SIMPLE, *ENDLESS], tmp_path, limit=3.0)
    assert_ended(pool)
    assert_works(own, tmp_path / "next")


def test_job_leaves_nothing_to_the_next(own: Pools, tmp_path: Path) -> None:
    """Two folders have a module of the same name, and each run writes its own log."""
    folders = []
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "mine.py").write_text(
            "from trainer.config.schema import SimpleNetConfig\n"
            "from trainer.models.simplenet import simplenet\n"
            f"def model(data):\n    print('module {number}', flush=True)\n"
            f"    return simplenet(SimpleNetConfig(), data)\n"
        )
        result = own.run(2, [*SIMPLE, "model=custom", "model.target=mine:model"], folder).check()
        assert f"module {number}" in result.out
        assert f"module {3 - number}" not in result.out
        folders.append(folder)
    first, second = ((folder / "run" / "logs" / "rank1.log").read_text() for folder in folders)
    assert first.count("optimizer state: ") == second.count("optimizer state: ") == 1
    assert "metrics.jsonl" in {path.name for path in (folders[1] / "run").iterdir()}


def assert_ended(pool: Pool) -> None:
    assert not pool.usable
    for rank in range(pool.ranks):
        command = Path(f"/proc/{pool.process(rank)}/cmdline")
        assert not command.exists() or not command.read_bytes()  # gone, or a zombie
