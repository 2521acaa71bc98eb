"""The scripts of `launch/`: their syntax, and the command that each of them comes down to."""

import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.configs import composed
from tests.support.launch import REPOSITORY
from tests.support.shell import Cluster

LAUNCH = REPOSITORY / "launch"
BATCH = [LAUNCH / name for name in ("slurm/train.sbatch", "slurm/sweep.sbatch", "slurm/container.sbatch")]
SCRIPTS = [*BATCH, LAUNCH / "hosts/train.sh", LAUNCH / "pbs/train.pbs", LAUNCH / "lsf/train.lsf"]
PAGES = "\n".join(page.read_text() for page in (REPOSITORY / "docs" / "clusters").glob("*.md"))
ARGUMENTS = ["experiment=small", "data.path=a corpus.txt"]  # a space has to survive
SAVED = 75

each_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)


def test_every_script_is_tested() -> None:
    files = (path for path in LAUNCH.rglob("*") if path.is_file())
    assert {path for path in files if path.read_bytes().startswith(b"#!")} == set(SCRIPTS)


@each_script
def test_syntax(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    if (shellcheck := shutil.which("shellcheck")) is None:
        pytest.skip("shellcheck is not installed (make setup)")
    # SC1091: it cannot follow .venv/bin/activate.
    subprocess.run([shellcheck, "--shell=bash", "--exclude=SC1091", script], check=True)


@each_script
def test_a_page_shows_how_to_start_it(script: Path) -> None:
    assert re.search(rf"^.*launch/{script.parent.name}/{re.escape(script.name)}", PAGES, re.MULTILINE)


@pytest.mark.parametrize("script", [script for script in SCRIPTS if script.name != "train.sh"], ids=str)
def test_started_by_hand_it_says_how_to_submit_it(script: Path, tmp_path: Path) -> None:
    process = Cluster(tmp_path, ["python"]).start(script)
    _, error = process.communicate()
    assert process.returncode != 0
    assert "run this with" in error


def test_slurm(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, ["python"])
    process = cluster.start(BATCH[0], ARGUMENTS, {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "7"})
    process.communicate()
    ((words, pid),) = cluster.calls()
    assert words == [
        *["python", "-m", "trainer.launch", "--requeue", "run.dir=runs/7", "checkpoint.every=100"],
        *ARGUMENTS,
    ]
    assert pid == process.pid  # the process that Slurm signals


@pytest.mark.parametrize("script", BATCH[:2], ids=lambda script: script.name)
def test_slurm_gives_notice_to_the_launcher_and_keeps_the_log(script: Path) -> None:
    options = re.findall(r"^#SBATCH (--\S+)$", script.read_text(), re.MULTILINE)
    assert {"--signal=B:USR1@120", "--requeue", "--open-mode=append"} <= set(options)


def combinations() -> list[str]:
    (block,) = re.findall(r"^combinations=\(\n(.*?)^\)", BATCH[1].read_text(), re.MULTILINE | re.DOTALL)
    return [line.strip().strip('"') for line in block.splitlines()]


def test_a_sweep_trains_every_combination_once(tmp_path: Path) -> None:
    (last,) = re.findall(r"^#SBATCH --array=0-(\d+)$", BATCH[1].read_text(), re.MULTILINE)
    seen = []
    for task in range(int(last) + 1):
        folder = tmp_path / str(task)
        folder.mkdir()
        cluster = Cluster(folder, ["python"])
        variables = {
            "SLURM_SUBMIT_DIR": str(folder),
            "SLURM_ARRAY_JOB_ID": "7",
            "SLURM_ARRAY_TASK_ID": str(task),
        }
        process = cluster.start(BATCH[1], ARGUMENTS, variables)
        process.communicate()
        ((words, pid),) = cluster.calls()
        assert pid == process.pid
        assert f"run.dir=runs/7/{task}" in words
        overrides = words[words.index(ARGUMENTS[-1]) + 1 :]
        composed("experiment=small", *overrides)  # the keys exist
        seen.append(" ".join(overrides))
    assert seen == combinations()
    assert len(set(seen)) == len(seen)


def test_a_sweep_without_a_line_for_a_task_says_so(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, ["python"])
    variables = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "99"}
    process = cluster.start(BATCH[1], (), variables)
    _, error = process.communicate()
    assert process.returncode == 2
    assert error == "sweep: task 99 of the array has no line: there are 4, counted from 0\n"
    assert not cluster.calls()


@pytest.mark.parametrize("code", [0, 1, SAVED])
def test_containers_are_requeued_after_saving_only(code: int, tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, ["srun", "scontrol"], code)
    variables = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "7", "IMAGE": "an image.sif"}
    process = cluster.start(BATCH[2], ARGUMENTS, variables)
    process.communicate()
    assert process.returncode == code
    srun, *others = [words for words, _ in cluster.calls()]
    assert srun[: srun.index("an image.sif")][-2:] == ["--pwd", str(tmp_path)]
    assert srun[srun.index("an image.sif") + 1 :] == [
        *["python", "-m", "trainer", "run.dir=runs/7", "checkpoint.every=100"],
        *ARGUMENTS,
    ]
    assert others == ([["scontrol", "requeue", "7"]] if code == SAVED else [])


def test_hosts(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, ["python"])
    process = cluster.start(LAUNCH / "hosts/train.sh", ARGUMENTS)
    process.communicate()
    ((words, pid),) = cluster.calls()
    assert words == ["python", "-m", "trainer.launch", "--hostfile", "launch/hosts/hosts", *ARGUMENTS]
    assert pid == process.pid
    lines = (LAUNCH / "hosts/hosts").read_text().splitlines()
    assert all(re.fullmatch(r"#.*|\w+ slots=[1-9]\d*", line) for line in lines)


PBS = {"PBS_JOBID": "12.server", "ARGS": "experiment=small train.steps=3"}


@pytest.mark.parametrize("code", [0, 1, SAVED])
def test_pbs_submits_a_job_that_continues_after_saving_only(code: int, tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, ["python", "qsub"], code)
    process = cluster.start(LAUNCH / "pbs/train.pbs", (), PBS | {"PBS_O_WORKDIR": str(tmp_path)})
    process.communicate()
    assert process.returncode == code
    python, *others = [words for words, _ in cluster.calls()]
    assert python == [
        *["python", "-m", "trainer.launch", "run.dir=runs/12", "checkpoint.every=100"],
        *["experiment=small", "train.steps=3"],
    ]
    again = ["qsub", "-v", f"RUN=runs/12,ARGS={PBS['ARGS']}", "launch/pbs/train.pbs"]
    assert others == ([again] if code == SAVED else [])


def test_pbs_waits_for_the_launcher_when_both_are_terminated(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, ["python", "qsub"], SAVED)
    slow = tmp_path / ".venv/bin/python"
    slow.write_text(f"#!/bin/bash\ntrap 'exit {SAVED}' TERM\necho ready\nwhile :; do sleep 0.05; done\n")
    process = cluster.start(LAUNCH / "pbs/train.pbs", (), PBS | {"PBS_O_WORKDIR": str(tmp_path)})
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    (launcher,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGTERM)
    subprocess.run(["kill", "-TERM", launcher], check=True)
    process.communicate(timeout=20)
    assert process.returncode == SAVED
    assert [words[0] for words, _ in cluster.calls()] == ["qsub"]


def test_lsf(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, ["python"])
    variables = {
        "LS_SUBCWD": str(tmp_path),
        "LSB_JOBID": "7",
        "ARGS": "experiment=small train.steps=3",
    }
    process = cluster.start(LAUNCH / "lsf/train.lsf", (), variables)
    process.communicate()
    ((words, pid),) = cluster.calls()
    assert words == [
        *["python", "-m", "trainer.launch", "run.dir=runs/7", "checkpoint.every=100"],
        *["experiment=small", "train.steps=3"],
    ]
    assert pid == process.pid
    assert f'#BSUB -Q "{SAVED}"\n' in (LAUNCH / "lsf/train.lsf").read_text()
