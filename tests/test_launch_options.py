"""The launcher's options, its requeueing, and the file that the planner reads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.launch import REPOSITORY
from trainer.distributed.launcher import check_size
from trainer.errors import UserError
from trainer.launch.again import MOST_STARTS, Starts, newest_step, record_of, requeue
from trainer.launch.network import Measured, plan_values, read_overrides, table, write
from trainer.launch.options import Options, parse


def test_words_of_the_trainer_keep_their_order() -> None:
    options = parse(["-np", "4", "model=gpt", "-m", "--grace", "5", "layout.stages=1,2", "--cfg", "job"])
    assert options == Options(
        ranks=4, grace=5.0, words=("model=gpt", "-m", "layout.stages=1,2", "--cfg", "job")
    )


def test_options() -> None:
    options = parse(["-H", "h1:2", "--mpirun-args=--mca a 'b c'", "--module", "trainer.verify", "--requeue"])
    assert options.mpirun_args == ("--mca", "a", "b c")
    assert (options.hosts, options.module, options.requeue) == ("h1:2", "trainer.verify", True)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["-np", "0"], "at least 1"),
        (["-np", "four"], "invalid int"),
        (["-H", "h1", "--hostfile", "f"], "one of them"),
        (["--grace", "-1"], "0 or more"),
        (["--mpirun-args", "'"], "mpirun-args"),
    ],
)
def test_wrong_options(words: list[str], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        parse(words)


def dry_run(*words: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    return subprocess.run(
        [sys.executable, "-m", "trainer.launch", "--dry-run", *words],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(REPOSITORY), **variables},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_dry_run_prints_the_command_and_starts_nothing(tmp_path: Path) -> None:
    ran = dry_run("-np", "4", "experiment=small", "layout.stages=2", folder=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1].endswith("-m trainer experiment=small layout.stages=2")
    assert "4 ranks, 4 on localhost" in ran.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["-np", "3", "layout.stages=2"], "world size 3 is not divisible by the group of 2 ranks"),
        (["layout.stage=2"], "there is no key layout.stage"),
        (["--requeue"], "--requeue needs run.dir=FOLDER"),
    ],
)
def test_what_cannot_run_is_refused_in_one_line(words: list[str], line: str, tmp_path: Path) -> None:
    ran = dry_run(*words, folder=tmp_path)
    assert ran.returncode == 2
    assert ran.stderr.count("\n") == 1
    assert ran.stderr.startswith(f"trainer.launch: error: {line}")


@pytest.mark.slow
def test_without_np_one_replica(tmp_path: Path) -> None:
    assert "3 ranks, 3 on localhost" in dry_run("layout.stages=3", folder=tmp_path).stderr
    assert "1 ranks, 1 on localhost" in dry_run(folder=tmp_path).stderr


@pytest.mark.slow
def test_the_launcher_imports_neither_torch_nor_mpi() -> None:
    code = (
        "import sys, trainer.launch.__main__, trainer.config.compose; "
        "print([name for name in ('torch', 'mpi4py', 'horovod', 'numpy') if name in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert ran.stdout == "[]\n"


def test_a_job_does_not_shrink_in_silence() -> None:
    check_size(4, {"TRAINER_WORLD_SIZE": "4", "OMPI_COMM_WORLD_SIZE": "4"})
    with pytest.raises(UserError, match="to start 4 processes, but MPI joins 3"):
        check_size(3, {"TRAINER_WORLD_SIZE": "4", "OMPI_COMM_WORLD_SIZE": "3"})


def test_starts_without_progress_are_given_up(tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    assert newest_step(tmp_path) == -1
    starts = Starts(tmp_path)
    assert [starts.may_start_again() for _ in range(MOST_STARTS)] == [True] * (MOST_STARTS - 1) + [False]
    for step in (5, 9):
        (checkpoints / f"step-{step:08d}").mkdir(parents=True)
        (checkpoints / f"step-{step + 1:08d}.partial").mkdir()
        assert newest_step(tmp_path) == step
        assert starts.may_start_again()


def test_starts_of_a_slurm_job_are_counted_over_its_processes(tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "7"
    record = record_of(run_dir, "7")
    worth = [Starts(run_dir, record).may_start_again() for _ in range(MOST_STARTS)]
    assert worth == [True] * (MOST_STARTS - 1) + [False]
    (run_dir / "checkpoints" / "step-00000005").mkdir(parents=True)
    assert Starts(run_dir, record).may_start_again()
    record.write_text("[1")
    assert Starts(run_dir, record).may_start_again()


SCONTROL = """#!/bin/sh
if [ "$1" = show ]; then echo "JobId=7 JobState={state} Reason={reason} RunTime={ran} TimeLimit=00:01:00 \
PreemptTime=None"
else echo "$2" > asked; fi
"""


@pytest.mark.parametrize(
    ("shown", "asked", "line"),
    [
        ("RUNNING None 00:00:10", True, "starts job 7 again"),
        ("COMPLETING None 00:00:10", False, "was cancelled"),  # by scancel
        ("COMPLETING TimeLimit 00:01:02", True, "starts job 7 again"),
        ("COMPLETING None 00:01:02", True, "starts job 7 again"),
        ("PENDING BeginTime 00:00:00", False, "starts job 7 again"),  # pre-empted
    ],
)
def test_requeue(shown: str, asked: bool, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The states are those that Slurm 22.05 showed."""
    state, reason, ran = shown.split()
    program = tmp_path / "scontrol"
    program.write_text(SCONTROL.format(state=state, reason=reason, ran=ran))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)
    assert line in requeue("7")
    assert (tmp_path / "asked").exists() == asked


LINKS = [
    Measured(("h1", "h1"), {8: 1e-6, 1 << 20: 1e-6 + (1 << 20) / 8e9}),
    Measured(("h1", "h2"), {8: 2e-5, 1 << 20: 2e-5 + (1 << 20) / 1e9}),
    Measured(("h1", "h3"), {8: 3e-5, 1 << 20: 3e-5 + (1 << 20) / 2e9}),
]


def test_the_planner_takes_the_slowest_links(tmp_path: Path) -> None:
    values = plan_values(LINKS, [2, 4, 2])
    assert values["plan.bandwidth"] == pytest.approx(8e9)
    assert values["plan.network"] == pytest.approx(1e9)
    assert values["plan.latency"] == pytest.approx(3e-5)
    assert values["plan.ranks_per_node"] == 2
    file = tmp_path / "cluster.json"
    write(file, LINKS, {"h1": 2, "h2": 4, "h3": 2})
    assert "plan.network=1e+09" in read_overrides(str(file))
    assert "plan.ranks_per_node=2" in read_overrides(str(file))
    assert table(LINKS).splitlines()[2].split()[:4] == ["h1", "h2", "20.0", "us"]


@pytest.mark.parametrize("content", ["", "[]", "{}", json.dumps({"plan": {"run.dir": 1}})])
def test_other_files_are_refused(content: str, tmp_path: Path) -> None:
    file = tmp_path / "cluster.json"
    file.write_text(content)
    with pytest.raises(UserError, match="--check"):
        read_overrides(str(file))
