"""A rank that stands still, or dies without a word, is named with its stage; the run ends, with all of it."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.support.launch import Launch, Result, alone, code_of_killed, horovodrun, is_mpich

pytestmark = pytest.mark.parallel

SOON = 40.0  # seconds; the limit is 3, and tests may share the machine
ENDLESS = [
    "train.epochs=1000000",
    "progress=line",
    "run.dir=run",
    "threads=1",
    "device=cpu",
    "train.stall_seconds=3",
]
SIMPLE = ["experiment=simplenet", *ENDLESS, "layout.stages=2"]
STUCK = [*SIMPLE, "model=custom", "data=binary", "model.target=tests.support.stuck:stuck"]


def ended(launched: Launch, code: int = 1) -> Result:
    """Wait for the end of a run, which leaves nothing."""
    result = launched.wait(SOON + launched.seconds)
    assert result.code == code, result.err
    assert not result.left_over
    return result


def headline(result: Result) -> str:
    """Return the one line that says why the run has ended."""
    (line,) = [line for line in result.err.splitlines() if line.startswith("trainer: no progress for ")][-1:]
    return line


@pytest.mark.parametrize(
    ("ranks", "stopped", "place"),
    [
        (2, 0, "stage 0, replica 0"),
        (2, 1, "stage 1, replica 0"),
        (4, 2, "stage 0, replica 1"),
        (4, 3, "stage 1, replica 1"),
    ],
)
def test_stopped_rank(ranks: int, stopped: int, place: str, tmp_path: Path) -> None:
    launched = Launch(horovodrun(ranks, SIMPLE), tmp_path)
    launched.wait_for("step 1/")
    launched.signal_rank(stopped, signal.SIGSTOP)
    result = ended(launched)
    assert f": rank {stopped} ({place}, host {os.uname().nodename}) is stopped (as by SIGSTOP)" in headline(
        result
    )
    waiting = [rank for rank in range(ranks) if rank != stopped]
    assert all(f"\n  rank {rank} (stage {rank % 2}, replica {rank // 2}, " in result.err for rank in waiting)
    assert all((tmp_path / f"run/logs/rank{rank}.stack.txt").exists() for rank in waiting)
    assert result.err.count("exit code 1; no checkpoint was saved yet") == 1


@pytest.mark.parametrize(
    ("way", "words"), [("sleep", "and does not compute"), ("deadlock", "and does not compute")]
)
def test_layer_that_never_returns(way: str, words: str, tmp_path: Path) -> None:
    result = ended(Launch(horovodrun(2, [*STUCK, f"+model.options.way={way}"]), tmp_path))
    assert f"is in the forward of micro-batch 2 of step 3, {words}; rank 0 waits for it" in headline(result)
    assert "rank 0 (stage 0, replica 0" in result.err
    assert "waits for the gradient of micro-batch 2 from rank 1" in result.err
    assert f'tests/support/stuck.py", line {line_of(way)} in _{way}' in result.err


def line_of(way: str) -> int:
    """Return the last line of a way to be stuck."""
    lines = (Path(__file__).parents[1] / "support/stuck.py").read_text().splitlines()
    start = lines.index(f"def _{way}() -> None:")
    return next(i for i in range(start, len(lines)) if not lines[i])


def test_layer_that_computes_for_ever(tmp_path: Path) -> None:
    """It is named at the first limit, and the run ends at the second."""
    launched = Launch(horovodrun(2, [*STUCK, "+model.options.way=loop", "train.busy_seconds=6"]), tmp_path)
    result = ended(launched)
    first, second = (line for line in result.err.splitlines() if line.startswith("trainer: no progress for "))
    for line in (first, second):
        assert "rank 1 (stage 1, replica 0, " in line
        assert "is in the forward of micro-batch 2 of step 3, computing; rank 0 waits for it" in line
    assert first.endswith("(it may: see docs/stalls.md)")


def test_one_process(tmp_path: Path) -> None:
    one = [override for override in STUCK if override != "layout.stages=2"]
    result = ended(Launch(alone([*one, "layout.stages=1"]), tmp_path))
    assert "rank 0 (stage 0, replica 0, " in headline(result)


def test_what_takes_long_is_no_stall(tmp_path: Path) -> None:
    """The first layer computes for longer than the limit, then training goes on."""
    slow = ["+model.options.way=work", "train.steps=5", "train.epochs=null"]
    launched = Launch(horovodrun(2, [*STUCK, *slow]), tmp_path)
    result = launched.wait(SOON + launched.seconds)
    assert result.code == 0, result.err
    assert "step 5/5" in result.out


def test_killed_rank_is_named(tmp_path: Path) -> None:
    if is_mpich():
        pytest.skip("MPICH kills the other ranks before they can say anything")
    launched = Launch(horovodrun(2, SIMPLE), tmp_path)
    launched.wait_for("step 1/")
    launched.signal_rank(1, signal.SIGKILL)
    result = ended(launched, code_of_killed())
    assert result.err.count("trainer: rank 1 (stage 1, replica 0, ") == 1
    assert " was killed in " in result.err
    assert "out of memory" not in result.err


@pytest.fixture
def small_group() -> Iterator[Path]:
    """Return a control group that may have 500 MiB."""
    folder = Path("/sys/fs/cgroup/memory") / f"trainer-test-{uuid4().hex}"
    try:
        folder.mkdir()
        (folder / "memory.limit_in_bytes").write_text(str(500 << 20))
    except OSError as error:
        pytest.skip(f"no control group for memory of version 1: {error}")
    yield folder
    folder.rmdir()


def test_rank_that_runs_out_of_memory(small_group: Path, tmp_path: Path) -> None:
    if is_mpich():
        pytest.skip("MPICH kills the other ranks before they can say anything")
    enter = f'[ "$OMPI_COMM_WORLD_RANK" = 1 ] && echo $$ > {small_group}/cgroup.procs; exec "$@"'
    program = [sys.executable, "-m", "trainer", *STUCK, "+model.options.way=eat"]
    command = ["mpirun", "-np", "2", "--oversubscribe", "bash", "-c", enter, "sh", *program]
    result = ended(Launch(command, tmp_path), code_of_killed())
    (line,) = [line for line in result.err.splitlines() if line.startswith("trainer: rank 1 ")]
    assert "(stage 1, replica 0, " in line
    assert "was killed by the kernel, out of memory, in the forward of micro-batch 2 of step 3" in line
    assert "its control group may have 500.0 MiB" in line
    assert "memory.recompute=full, more layout.stages or a smaller batch.micro_size" in line


def test_mapped_file_that_shrinks(small: list[str], text_file: Path, tmp_path: Path) -> None:
    """Both ranks read it: each would be killed, and none could name it."""
    cache = tmp_path / "cache"
    text = ["train.steps=1000000", f"data.cache={cache}", "eval.every=0", "layout.stages=2", "progress=line"]
    launched = Launch(horovodrun(2, [*small, *text]), tmp_path)
    launched.wait_for("step 1/")
    (tokens,) = cache.glob("*.tokens")
    size = tokens.stat().st_size
    os.truncate(tokens, 0)
    result = ended(launched)
    assert len(result.messages) == 1
    assert f"the token file {tokens} has 0 bytes now, and had {size:,}" in result.messages[0]


def test_crash(tmp_path: Path) -> None:
    if is_mpich():
        pytest.skip("MPICH kills the other ranks before they can say anything")
    launched = Launch(horovodrun(2, SIMPLE), tmp_path)
    launched.wait_for("step 1/")
    launched.signal_rank(1, signal.SIGBUS)
    result = ended(launched, 128 + signal.SIGBUS)
    (line,) = [line for line in result.err.splitlines() if line.startswith("trainer: rank ")]
    assert "rank 1 (stage 1, replica 0, " in line
    assert "crashed (SIGBUS, exit code 135) in " in line
    assert "a file that it maps has changed" in line
