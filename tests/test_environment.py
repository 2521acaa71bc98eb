"""The environment: what is read from it and written to it before anything else starts."""

import platform
import subprocess
import sys

import pytest

from tests.support.launch import REPOSITORY
from trainer.distributed import environment
from trainer.distributed.environment import (
    cores,
    launched,
    local_size,
    no_core_to_spare,
    prepare,
    prepare_deterministic,
    rank,
    reads_memory_of_others,
    slow_down_horovod,
    threads_per_rank,
)
from trainer.errors import UserError

MANY = 100_000  # ranks on a node, more than it has cores


@pytest.mark.parametrize(
    ("variables", "number", "on_node"),
    [
        pytest.param({"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, 3, 4, id="Open MPI"),
        pytest.param({"PMI_RANK": "5", "MPI_LOCALNRANKS": "2"}, 5, 2, id="MPICH"),
        pytest.param({"PMIX_RANK": "1", "SLURM_NTASKS_PER_NODE": "8"}, 1, 8, id="srun"),
        pytest.param({"PMIX_RANK": "1"}, 1, 1, id="ranks on the node unknown"),
    ],
)
def test_launchers(variables: dict[str, str], number: int, on_node: int) -> None:
    assert launched(variables)
    assert rank(variables) == number
    assert local_size(variables) == on_node


def test_no_launcher() -> None:
    inside_a_job = {"SLURM_NTASKS_PER_NODE": "8", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}
    assert not launched(inside_a_job)
    assert rank(inside_a_job) == 0
    assert local_size(inside_a_job) == 1


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "cores", lambda variables: 8)
    assert [threads_per_rank("auto", ranks) for ranks in (1, 2, 3, 8, 9)] == [8, 4, 2, 1, 1]
    assert threads_per_rank(5, 2) == 5


def test_one_process_starts_mpi_isolated() -> None:
    variables: dict[str, str] = {}
    prepare(variables)
    assert variables == {"OMPI_MCA_ess_singleton_isolated": "1"}


def test_more_ranks_than_cores_do_not_spin() -> None:
    variables = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_LOCAL_SIZE": str(MANY)}
    prepare(variables)
    assert variables["OMPI_MCA_mpi_yield_when_idle"] == "1"


def test_horovod_polls_less_often_the_more_ranks_share_a_core() -> None:
    few: dict[str, str] = {}
    many: dict[str, str] = {}
    slow_down_horovod(1, few)
    slow_down_horovod(MANY, many)
    # Milliseconds; at one, Horovod's default, polling costs as much as the work.
    assert 5 <= float(few["HOROVOD_CYCLE_TIME"]) < float(many["HOROVOD_CYCLE_TIME"])
    slow_down_horovod(MANY, few)
    assert float(few["HOROVOD_CYCLE_TIME"]) < float(many["HOROVOD_CYCLE_TIME"])  # settings stay


def test_threads_that_fill_the_node_leave_no_core() -> None:
    assert no_core_to_spare(1, cores())
    assert no_core_to_spare(cores(), 1)
    assert not no_core_to_spare(1, cores() - 1)


def test_ranks_with_a_core_each_do_not_yield_it() -> None:
    variables = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}
    prepare(variables)
    assert "OMPI_MCA_mpi_yield_when_idle" not in variables


def test_messages_are_eager_where_memory_cannot_be_read() -> None:
    given = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}
    denied = given | {"OMPI_MCA_btl_vader_single_copy_mechanism": "none"}
    many = denied | {"OMPI_COMM_WORLD_LOCAL_SIZE": str(10**9)}  # too many for the shared memory
    for variables in (given, denied, many):
        prepare(variables)
    assert int(given["OMPI_MCA_btl_tcp_eager_limit"]) >= 1 << 20
    eager, segment = "OMPI_MCA_btl_vader_eager_limit", "OMPI_MCA_btl_vader_segment_size"
    assert int(denied[eager]) >= 1 << 20
    assert int(denied[segment]) >= 16 * int(denied[eager])
    assert eager not in many
    assert (eager in given) == (not reads_memory_of_others())


def test_user_settings_stay() -> None:
    variables = {
        "OMPI_COMM_WORLD_RANK": "0",
        "OMPI_COMM_WORLD_LOCAL_SIZE": str(MANY),
        "OMPI_MCA_mpi_yield_when_idle": "0",
        "OMPI_MCA_btl_tcp_eager_limit": "70000",
        "OMPI_MCA_btl_vader_eager_limit": "4096",
        "OMPI_MCA_btl_vader_segment_size": "4194304",
        "OMPI_MCA_btl_vader_backing_directory": "/scratch",
    }
    before = dict(variables)
    prepare(variables)
    assert variables == before


def test_gloo_is_refused() -> None:
    with pytest.raises(UserError, match="--gloo"):
        prepare({"HOROVOD_GLOO_RENDEZVOUS_ADDR": "127.0.0.1", "HOROVOD_RANK": "0"})


# Allocates and frees 8 MB, 50 times, and prints how often the kernel had to provide memory.
COUNT_PAGE_FAULTS = """
import resource, sys
from trainer.distributed.environment import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
bytearray(8 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    bytearray(b"1") * (8 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_freed_memory_is_kept() -> None:
    kept, given_back = (
        int(subprocess.check_output([sys.executable, "-c", COUNT_PAGE_FAULTS, what], cwd=REPOSITORY))
        for what in ("keep", "leave")
    )
    assert kept < given_back / 2


def test_deterministic() -> None:
    variables = {"HOROVOD_AUTOTUNE": "1"}
    prepare_deterministic(variables)
    assert variables["HOROVOD_FUSION_THRESHOLD"] == "0"
    assert variables["HOROVOD_DISABLE_GROUP_FUSION"] == "1"
    assert variables["HOROVOD_AUTOTUNE"] == "0"
