"""A single process starts as one whatever its shell inherits; another launcher's processes are refused."""

import socket

import pytest

from trainer.distributed import environment
from trainer.distributed.launcher import check_size, settle
from trainer.errors import UserError

DEAD = "1.0;tcp4://127.0.0.1:1"


@pytest.mark.parametrize(
    "variables",
    [
        pytest.param({}, id="none"),
        pytest.param({"PMI_RANK": "0", "PMI_SIZE": "1"}, id="PMI"),
        pytest.param({"SLURM_STEP_ID": "0", "SLURM_STEPID": "0", "SLURM_NTASKS": "1"}, id="Slurm step"),
        pytest.param(
            {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "4"},
            id="interactive step of a larger job",
        ),
        pytest.param({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, id="batch script"),
        pytest.param({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "1"}, id="Open MPI"),
        pytest.param(
            {"PMIX_RANK": "1", "PMIX_SERVER_URI2": DEAD, "OMPI_MCA_ess": "^singleton"}, id="ended mpirun"
        ),
        pytest.param({"WORLD_SIZE": "8"}, id="a variable of the user's"),
    ],
)
def test_left_over(variables: dict[str, str]) -> None:
    settle(variables)
    assert not environment.launched(variables)
    assert environment.rank(variables) == 0
    assert variables["OMPI_MCA_ess_singleton_isolated"] == "1"
    assert not [name for name in variables if name.startswith(("PMIX_", "SLURM_STEPID", "OMPI_MCA_orte"))]
    check_size(1, variables)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        pytest.param(
            {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}, "unset WORLD_SIZE RANK", id="torchrun"
        ),
        pytest.param({"PMI_RANK": "0", "PMI_SIZE": "3"}, "unset PMI_SIZE PMI_RANK", id="another MPI"),
        pytest.param({"SLURM_STEP_ID": "0", "SLURM_NTASKS": "4"}, "SLURM_NTASKS=4", id="srun without MPI"),
        pytest.param(
            {"OMPI_COMM_WORLD_SIZE": "2", "PMIX_SERVER_URI2": DEAD}, "2 processes", id="ended mpirun"
        ),
    ],
)
def test_another_launcher(variables: dict[str, str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        settle(variables)
    assert not environment.launched(variables)  # else the message would start MPI


def test_the_first_of_several_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """They do not know of each other: the others wait until the launcher has ended them."""
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    for rank in ("0", "1", "2"):
        with pytest.raises(UserError):
            settle({"WORLD_SIZE": "3", "RANK": rank, "LOCAL_RANK": rank})
    assert len(slept) == 2
    assert 0 < slept[0] < slept[1]


def test_a_launcher_that_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        given = {
            "OMPI_COMM_WORLD_RANK": "1",
            "OMPI_COMM_WORLD_SIZE": "2",
            "PMIX_SERVER_URI2": f"1.0;tcp4://127.0.0.1:{port}",
            "WORLD_SIZE": "8",
            "RANK": "0",
            "LOCAL_RANK": "0",
        }
        variables = dict(given)
        settle(variables)
        assert variables == given
    check_size(2, variables)
    with pytest.raises(UserError, match="OMPI_COMM_WORLD_SIZE=2"):
        check_size(1, variables)
    check_size(1, variables | {"OMPI_COMM_WORLD_SIZE": "1"})  # in whatever started it


def test_another_mpi_that_answers_may_be_ours() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        variables = {"PMI_RANK": "0", "PMI_SIZE": "2", "PMI_FD": str(ours.fileno())}
        settle(variables)
        assert environment.launched(variables)
        check_size(2, variables)
        with pytest.raises(UserError, match="PMI_SIZE=2"):
            check_size(1, variables)


def test_a_rank_left_by_gloo_silences_nothing() -> None:
    assert environment.rank({"HOROVOD_RANK": "1"}) == 0
