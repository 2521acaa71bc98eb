"""The command that starts the ranks, by place and MPI."""

import sys
from pathlib import Path

import pytest

from trainer.launch.command_line import Request, by_mpirun, by_srun, passed_on, program
from trainer.launch.mpi import Kind, Mpi, find_mpi
from trainer.launch.place import Host, Reach

OPEN_MPI = Mpi("/opt/mpi/bin/mpirun", Kind.OPEN_MPI, "4.1.8")
MPICH = Mpi("/opt/mpich/bin/mpiexec", Kind.MPICH, "4.2.3")
TWO = (Host("h1", 2), Host("h2", 2))


def request(reach: Reach, **options: object) -> Request:
    given: dict[str, object] = {"hosts": TWO, "reach": reach, "job": "0a1b", **options}
    return Request(**given)  # type: ignore[arg-type]


def value_of(command: tuple[str, ...], key: str) -> str:
    """Return what follows an MCA parameter's name."""
    place = command.index(key)
    assert command[place - 1] == "--mca"
    return command[place + 1]


def test_this_machine() -> None:
    start = by_mpirun(OPEN_MPI, request(Reach.LOCAL, hosts=(Host("localhost", 4),)), ["--oversubscribe"])
    text = " ".join(start.command)
    assert text.startswith("/opt/mpi/bin/mpirun ")
    assert "-np 4 -H localhost:4 --bind-to none --map-by slot --mca pml ob1 --mca btl ^openib" in text
    assert text.endswith("--oversubscribe")
    assert "-x" not in start.command
    assert start.variables == {"TRAINER_JOB": "0a1b", "TRAINER_WORLD_SIZE": "4"}


def test_hosts_over_ssh() -> None:
    environment = {"PATH": "/usr/bin", "HOROVOD_CYCLE_TIME": "5", "HOSTNAME": "h1", "SSH_AUTH_SOCK": "/s"}
    asked = request(Reach.SSH, environment=environment, networks=["10.0.0.0/24"])
    command = by_mpirun(OPEN_MPI, asked).command
    keepalive = [f"oob_tcp_keepalive_{name}" for name in ("time", "intvl", "probes")]
    assert [value_of(command, name) for name in keepalive] == ["4", "1", "3"]
    assert value_of(command, "btl_tcp_if_include") == value_of(command, "oob_tcp_if_include") == "10.0.0.0/24"
    assert value_of(command, "ras") == "^slurm"
    exported = [command[place + 1] for place, word in enumerate(command) if word == "-x"]
    assert exported == ["HOROVOD_CYCLE_TIME", "PATH", "TRAINER_JOB", "TRAINER_WORLD_SIZE"]
    assert command[command.index("--wdir") + 1] == str(Path.cwd())


def test_interfaces_that_the_user_chooses_stay() -> None:
    environment = {"OMPI_MCA_btl_tcp_if_exclude": "docker0,lo"}
    command = by_mpirun(
        OPEN_MPI, request(Reach.SSH, environment=environment, networks=["10.0.0.0/24"])
    ).command
    assert "btl_tcp_if_include" not in command
    assert value_of(command, "oob_tcp_if_include") == "10.0.0.0/24"


def test_slurm_takes_slots_from_us_and_hosts_from_slurm() -> None:
    """With Slurm's hosts left out, Open MPI's srun starts the daemons on any node of the allocation."""
    start = by_mpirun(OPEN_MPI, request(Reach.SRUN, nodes=("h1", "h2", "h3")))
    assert "ras" not in start.command
    assert start.variables["SLURM_TASKS_PER_NODE"] == "2,2,1"
    agent = value_of(start.command, "orte_launch_agent").split()
    assert agent[0] == sys.executable
    assert Path(agent[1]).is_file()
    assert agent[2] == "/opt/mpi/bin/orted"


def test_hosts_outside_of_the_allocation() -> None:
    command = by_mpirun(OPEN_MPI, request(Reach.SSH, environment={"SLURM_JOB_ID": "7"})).command
    assert value_of(command, "plm") == "^slurm"


def test_mpich() -> None:
    command = " ".join(by_mpirun(MPICH, request(Reach.SSH)).command)
    assert command == "/opt/mpich/bin/mpiexec -np 4 -hosts h1:2,h2:2 -bootstrap ssh -bind-to none"
    local = " ".join(by_mpirun(MPICH, request(Reach.LOCAL)).command)
    assert local == "/opt/mpich/bin/mpiexec -np 4 -bind-to none"


def test_srun() -> None:
    start = by_srun(request(Reach.SRUN, hosts=(Host("h1", 1), Host("h2", 2))))
    assert start.command[:2] == ("srun", "--mpi=pmix")
    assert "--nodelist=h1,h2,h2" in start.command
    assert "--distribution=arbitrary" in start.command
    assert start.variables["TRAINER_WORLD_SIZE"] == "3"


def test_variables_that_stay_here() -> None:
    environment = {
        **{"PATH": "/bin", "XDG_CACHE_HOME": "/c", "XDG_RUNTIME_DIR": "/r", "SLURM_PROCID": "0"},
        **{"BASH_FUNC_module%%": "() { x; }", "LINES": "a\nb", "OMPI_MCA_btl": "tcp", "NCCL_DEBUG": "INFO"},
    }
    assert passed_on(environment) == ["PATH", "XDG_CACHE_HOME", "NCCL_DEBUG"]


def test_program() -> None:
    assert program("trainer.verify", ["layout.stages=2"]) == [
        sys.executable,
        "-m",
        "trainer.verify",
        "layout.stages=2",
    ]


@pytest.mark.slow
def test_mpirun_of_this_environment() -> None:
    assert Path(find_mpi().mpirun).is_absolute()
