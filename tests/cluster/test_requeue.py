"""A job that Slurm ends early saves, and goes on where it stopped: no step is lost, no bit changes."""

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.slurm import Job, Slurm
from tests.support.runs import Finished

STEPS = 30
LIMIT = 240.0  # seconds; on an idle machine half a minute
START = f"horovodrun -np 2 {sys.executable} -m trainer"

# A shell sees a signal only while it waits. Slurm's SIGTERM goes to all processes of a job, SIGUSR1 of
# `--signal=B:USR1@...` to the script alone.
SCRIPT = """
{start} {overrides} &
launched=$!
trap 'kill -USR1 $launched' USR1
trap : TERM
while kill -0 $launched 2>/dev/null; do wait $launched; done
wait $launched; code=$?
echo "the launcher ends with $code"
exit $code
"""
LAUNCHER = f"exec {sys.executable} -m trainer.launch --requeue -np 2 {{overrides}}"


def overrides(small: list[str], seconds: float) -> list[str]:
    """Return what trains for some steps; each takes 18 times some seconds while a file `slow` exists."""
    options = f"{{blocks: 2, width: 32, heads: 2, context: 32, seconds: {seconds}}}"
    model = ["experiment=none", "model=custom", "model.target=tests.support.slow:slowed"]
    size = [f"+model.options={options}", "data.context=32", "batch.global_size=8", "batch.micro_size=1"]
    training = [f"train.steps={STEPS}", "checkpoint.keep=0", "layout.stages=2", "progress=line"]
    return [
        *[each for each in small if not each.startswith(("experiment=", "train."))],
        *model,
        *size,
        *training,
    ]


@pytest.fixture(scope="module")
def undisturbed(cluster: Slurm, small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Return a run that nothing has stopped."""
    folder = tmp_path_factory.mktemp("undisturbed")
    command = shlex.join([sys.executable, "-m", "trainer", *overrides(small, 0), "layout.stages=1"])
    result = cluster.launch(["srun", *shlex.split(command)], folder).wait(LIMIT).check()
    return Finished(result, folder / "run")


@pytest.fixture
def idle(cluster: Slurm) -> Iterator[Slurm]:
    """Return Slurm, which has no job afterwards."""
    yield cluster
    cluster.clear()


def submit(
    cluster: Slurm,
    small: list[str],
    folder: Path,
    *options: str,
    seconds: float = 0.01,
    script: str = SCRIPT,
) -> Job:
    """Submit a job of two ranks that goes on with the run in the folder, slowly until `hurry`."""
    (folder / "slow").touch()
    script = script.format(start=START, overrides=shlex.join(overrides(small, seconds)))
    return cluster.submit(script, folder, "--ntasks=2", *options)


def wait_for_step(job: Job, folder: Path, step: int) -> None:
    """Wait until a run has made some steps."""
    metrics = folder / "run" / "metrics.jsonl"
    job.wait_for(lambda: metrics.exists() and metrics.read_text().count('"loss"') >= step, LIMIT)


def hurry(job: Job, folder: Path) -> None:
    """Let the rest of a run be fast, once the job has saved."""
    job.wait_for(lambda: "which is saved" in job.output(), LIMIT)
    (folder / "slow").unlink()


def check(printed: str, folder: Path, undisturbed: Finished) -> None:
    """Assert that a run went on from where it was told to stop, and ended as the undisturbed one."""
    stopped = re.findall(
        r"^trainer: stopped by \w+.* after step (\d+), which is saved", printed, re.MULTILINE
    )
    assert stopped, printed
    assert re.findall(r"resumed after step (\d+)", printed) == stopped, printed
    run = Finished(undisturbed.result, folder / "run")
    assert run.losses == undisturbed.losses
    assert run.grad_norms == undisturbed.grad_norms
    assert run.layer_files(STEPS) == undisturbed.layer_files(STEPS)


def test_scancel(idle: Slurm, small: list[str], tmp_path: Path, undisturbed: Finished) -> None:
    """It runs on two nodes, and goes on on one."""
    first = submit(idle, small, tmp_path, "--nodes=2")
    wait_for_step(first, tmp_path, 3)
    idle.run("scancel", first.number)
    first.wait(LIMIT)
    assert first.field("JobState") == "CANCELLED"
    second = submit(idle, small, tmp_path)
    hurry(second, tmp_path)
    assert second.wait(LIMIT) == 0
    check(first.output(), tmp_path, undisturbed)


def test_pre_emption(idle: Slurm, small: list[str], tmp_path: Path, undisturbed: Finished) -> None:
    job = submit(idle, small, tmp_path, "--requeue", "--nodelist=h2", "--exclusive")
    wait_for_step(job, tmp_path, 3)
    urgent = idle.submit("sleep 1", tmp_path, "--partition=urgent", "--nodelist=h2", "--exclusive")
    hurry(job, tmp_path)
    assert urgent.wait(LIMIT) == 0
    assert job.wait(LIMIT) == 0
    assert job.field("Restarts") == "1"
    check(job.output(), tmp_path, undisturbed)


def test_a_node_that_is_drained(idle: Slurm, small: list[str], tmp_path: Path, undisturbed: Finished) -> None:
    job = submit(idle, small, tmp_path, "--requeue")
    wait_for_step(job, tmp_path, 3)
    node = job.field("NodeList")
    idle.drain(node)
    try:
        idle.run("scontrol", "requeue", job.number)
        hurry(job, tmp_path)
        assert job.wait(LIMIT) == 0
        assert job.field("NodeList") != node
        check(job.output(), tmp_path, undisturbed)
    finally:
        idle.resume(node)


def test_a_time_limit(idle: Slurm, small: list[str], tmp_path: Path, undisturbed: Finished) -> None:
    """The notice comes half a minute before the limit, in whole minutes; the launcher requeues the job."""
    notice = ["--signal=B:USR1@30", "--requeue", "--ntasks=2"]
    job = submit(idle, small, tmp_path, "--time=10", *notice, seconds=0.15, script=LAUNCHER)
    wait_for_step(job, tmp_path, 1)
    _, minutes, seconds = map(int, job.field("RunTime").split(":"))
    idle.run("scontrol", "update", f"jobid={job.number}", f"timelimit={minutes + 1 + (seconds > 15)}")
    hurry(job, tmp_path)
    assert job.wait(LIMIT) == 0
    assert job.field("Restarts") == "1"
    check(job.output(), tmp_path, undisturbed)
    assert idle.hosts.left() == {}
