"""A signal lets the step finish; the run saves, exits with 75, and continues as if it had never stopped."""

import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.launch import Launch, Result, alone, horovodrun
from tests.support.pools import Pools
from tests.support.runs import GPT, Finished, Trained

pytestmark = pytest.mark.parallel

SOON = 20.0  # seconds
STEPS = ["train.steps=40", "eval.every=0", "checkpoint.every=0", "generate.tokens=0"]


@dataclass(frozen=True)
class Runs:
    """What continues a run, what trains without interruption, and what makes both small."""

    pools: Pools
    trained: Trained
    small: list[str]


@pytest.fixture
def runs(pools: Pools, trained: Trained, small: list[str]) -> Runs:
    return Runs(pools, trained, small)


def stop(launched: Launch, target: str, number: signal.Signals, last_rank: int) -> Result:
    """Signal a run in the middle, and wait for its end."""
    launched.wait_for("step 1/40")
    if target == "rank":
        launched.signal_rank(last_rank, number)
    elif target == "group":
        launched.signal_group(number)
    else:
        launched.signal_launcher(number)
    return launched.wait(SOON + launched.seconds)


@pytest.mark.parametrize(
    ("replicas", "target", "number"),
    [
        (2, "launcher", signal.SIGTERM),
        (1, "group", signal.SIGTERM),
        (2, "rank", signal.SIGTERM),
        (1, "launcher", signal.SIGUSR1),
    ],
)
def test_stopped_run_continues_with_the_same_bits(
    replicas: int, target: str, number: signal.Signals, runs: Runs, tmp_path: Path
) -> None:
    """It had two stages, and continues with one."""
    ranks, overrides = 2 * replicas, [*STEPS, "layout.stages=2"]
    launched = Launch(horovodrun(ranks, [*runs.small, *GPT, *overrides, "progress=line"]), tmp_path)
    result = stop(launched, target, number, ranks - 1)
    assert result.code == 75, result.err
    assert not result.left_over
    assert "---" not in result.err  # Open MPI's own words on exit codes
    (line,) = [line for line in result.err.splitlines() if line.startswith("trainer: ")]
    assert line.startswith("trainer: stopped by SIG")
    assert "which is saved; rerun with run.dir=run to resume from step-000000" in line
    stopped = len(Finished(result, tmp_path / "run").steps)
    assert 1 <= stopped < 40
    rest = runs.pools.run(replicas, [*runs.small, *GPT, *STEPS, "layout.stages=1"], tmp_path).check()
    resumed, whole = Finished(rest, tmp_path / "run"), runs.trained(ranks, *overrides)
    assert f"resumed after step {stopped}" in rest.out
    assert resumed.losses == whole.losses
    assert resumed.layer_files(40) == whole.layer_files(40)


def test_one_process(small: list[str], tmp_path: Path) -> None:
    launched = Launch(alone([*small, *STEPS, "train.steps=100000", "progress=line"]), tmp_path)
    launched.wait_for("step 1/")
    launched.signal_launcher(signal.SIGTERM)
    result = launched.wait(SOON + launched.seconds)
    assert result.code == 75
    assert result.err.count("\n") == 1
    assert result.err.startswith("trainer: stopped by SIGTERM after step ")
    steps = Finished(result, tmp_path / "run").steps
    assert f"resume from step-{len(steps):08d}" in result.err


def test_start_up(tmp_path: Path) -> None:
    """A slow import of the user's, while which nothing is lost."""
    (tmp_path / "slow.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(1000)\n")
    custom = ["experiment=simplenet", "model=custom", "data=binary", "model.target=slow:build"]
    launched = Launch(alone(custom), tmp_path)
    launched.wait_for("importing")
    launched.signal_launcher(signal.SIGTERM)
    result = launched.wait(SOON + launched.seconds)
    assert result.code == 75
    assert result.err == "trainer: SIGTERM before there is anything to save: nothing is lost, run again\n"
