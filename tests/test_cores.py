"""How many cores a job, and each of its ranks, has."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.launch import REPOSITORY
from trainer.distributed.cores import cores_of_rank, cpu_quota, job_cores
from trainer.distributed.environment import threads_per_rank, why_threads

CORES = os.cpu_count() or 1


@pytest.mark.parametrize(
    ("masks", "cores"),
    [
        ([{0, 1}, {2, 3}], [2, 2]),
        ([{0, 1, 2, 3}] * 2, [2, 2]),
        ([{0}] * 2, [0.5, 0.5]),
        ([{0, 1}, {1}], [1.5, 0.5]),
    ],
)
def test_cores_of_rank(masks: list[set[int]], cores: list[float]) -> None:
    assert [cores_of_rank(masks, rank) for rank in range(len(masks))] == cores


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        ("0::/job/step\n", {"job/cpu.max": "150000 100000"}, 1.5),
        ("0::/job/step\n", {"job/cpu.max": "max 100000", "job/step/cpu.max": "200000 100000"}, 2),
        ("0::/not/here\n", {"cpu.max": "50000 100000"}, 0.5),  # a container sees its own group as the root
        ("3:cpu,cpuacct:/job\n", {"cpu,cpuacct/job/cpu.cfs_quota_us": "300000"}, 3),
        ("3:cpu,cpuacct:/job\n", {"cpu,cpuacct/job/cpu.cfs_quota_us": "-1"}, math.inf),
        ("0::/\n", {}, math.inf),
    ],
)
def test_cpu_quota(groups: str, files: dict[str, str], quota: float, tmp_path: Path) -> None:
    own, root = tmp_path / "cgroup", tmp_path / "root"
    own.write_text(groups)
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
        if name.endswith("quota_us"):
            (root / name).with_name("cpu.cfs_period_us").write_text("100000")
    assert cpu_quota(root, own) == quota


def test_an_allocation_of_slurm_limits() -> None:
    assert job_cores({"SLURM_CPUS_ON_NODE": "1"}, launched=False) == 1
    assert job_cores({"SLURM_CPUS_ON_NODE": ""}, launched=False) >= 1


LOOK = "from trainer.distributed.environment import cores; print(cores())"


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
@pytest.mark.parametrize(
    ("bound", "everybody", "cores"),
    [
        pytest.param({"OMPI_MCA_orte_bound_at_launch": "1"}, False, len(os.sched_getaffinity(0)), id="bound"),
        pytest.param({}, False, 1, id="by the user, all ranks alike"),
        pytest.param({"OMPI_MCA_orte_bound_at_launch": "1"}, True, 1, id="the launcher too"),
    ],
)
def test_bound_ranks_share_the_cores_of_their_launcher(
    bound: dict[str, str], everybody: bool, cores: int
) -> None:
    """This process stands for the launcher: it is the nearest ancestor that is no rank."""
    core = str(min(os.sched_getaffinity(0)))
    rank = ["taskset", "-c", core, "sh", "-c", f"{sys.executable} -c '{LOOK}'"]
    variables = {**os.environ, "OMPI_COMM_WORLD_RANK": "0", **bound}
    launch = f"import subprocess, sys; subprocess.run(sys.argv[1:], env={variables!r})"
    launcher = [*(["taskset", "-c", core] if everybody else []), sys.executable, "-c", launch]
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("OMPI_COMM", "PMIX_"))}
    out = subprocess.check_output([*launcher, *rank], cwd=REPOSITORY, env=kept)
    assert int(out) == cores


def test_threads_of_bound_ranks() -> None:
    assert threads_per_rank("auto", 1, 1.0, {}) == 1
    assert threads_per_rank("auto", 10**6, 0.5, {}) == 1
    assert threads_per_rank(7, 1, 1.0, {}) == 7


def test_omp_num_threads() -> None:
    given = {"OMP_NUM_THREADS": str(CORES + 1)}
    assert threads_per_rank("auto", 1, math.inf, given) == CORES + 1
    assert why_threads("auto", 1, CORES + 1, given) == "by OMP_NUM_THREADS"
    assert why_threads(CORES + 1, 1, CORES + 1, given) == ""


def test_why() -> None:
    assert why_threads("auto", 1, CORES, {}) == ""
    if CORES > 1:
        assert f"1 of the machine's {CORES} cores" in why_threads("auto", 1, 1, {"SLURM_CPUS_ON_NODE": "1"})
