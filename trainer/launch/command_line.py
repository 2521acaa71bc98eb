"""The command that starts the ranks."""

import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trainer.launch.mpi import Kind, Mpi
from trainer.launch.place import Host, Reach

MARK = "TRAINER_JOB"
SIZE = "TRAINER_WORLD_SIZE"

# As horovodrun: messages between ranks go by shared memory and TCP.
_MESSAGES = ("--mca", "pml", "ob1", "--mca", "btl", "^openib")
# A host that vanishes is noticed after 4 + 3 * 2 seconds, not after eight minutes.
_KEEPALIVE = (
    *("--mca", "oob_tcp_keepalive_time", "4"),
    *("--mca", "oob_tcp_keepalive_intvl", "1"),
    *("--mca", "oob_tcp_keepalive_probes", "3"),
)
_MANY_HOSTS = 64  # as horovodrun

# Variables that belong to one host, one shell or one launcher.
_OF_THIS_HOST = re.compile(
    r"_|PWD|OLDPWD|SHLVL|HOSTNAME|HOST|DISPLAY|TMPDIR|MAIL|TTY|WINDOW(ID)?|LS_COLORS|"
    r"(SSH|XDG|DBUS|SLURM|SLURMD|PBS|LSB|LSF|LS|PMI|PMIX|PMI2|OMPI|PRTE|HYDRA|HYDI|KUBERNETES|BASH_FUNC)_.*"
)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_KEPT_OF_XDG = "XDG_CACHE_HOME"  # where the trainer keeps tokens


@dataclass(frozen=True)
class Start:
    """What starts the ranks.

    Attributes:
        command: The program and its arguments.
        variables: To be added to its environment.
        how: In words, for the user.
    """

    command: tuple[str, ...]
    variables: Mapping[str, str]
    how: str


def program(module: str, words: Sequence[str]) -> list[str]:
    """Return what every rank runs."""
    return [sys.executable, "-m", module, *words]


@dataclass(frozen=True)
class Request:
    """What to start where.

    Attributes:
        hosts: The hosts in the order of their ranks, each with as many slots as ranks.
        reach: How daemons get to them.
        job: The mark of the job's processes.
        nodes: The nodes of the Slurm allocation, if its srun starts the daemons.
        networks: The networks that all hosts share, such as "10.0.0.0/24"; none: MPI looks for itself.
        environment: This process's variables, which the ranks get.
    """

    hosts: Sequence[Host]
    reach: Reach
    job: str
    nodes: Sequence[str] = ()
    networks: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def ranks(self) -> int:
        """Return the number of ranks."""
        return sum(host.slots for host in self.hosts)

    @property
    def listed(self) -> str:
        """Return the hosts as `-H` takes them."""
        return ",".join(f"{host.name}:{host.slots}" for host in self.hosts)


def by_mpirun(mpi: Mpi, request: Request, options: Sequence[str] = ()) -> Start:
    """Return how mpirun starts the ranks, without the program that they run.

    Args:
        mpi: Whose mpirun.
        request: What to start where.
        options: Further options, by the user.
    """
    variables = {MARK: request.job, SIZE: str(request.ranks)}
    if request.reach is Reach.SRUN:
        variables |= _slots_in_slurm(request)
    arguments = _open_mpi(mpi, request) if mpi.kind is Kind.OPEN_MPI else _mpich(request)
    daemons = "" if request.reach is Reach.LOCAL else f", daemons by {request.reach.value}"
    how = f"{mpi.kind.value} {mpi.version}{daemons}"
    return Start((mpi.mpirun, *arguments, *options), variables, how)


def by_srun(request: Request) -> Start:
    """Return how Slurm itself starts the ranks, by PMIx, without the program that they run."""
    names = [host.name for host in request.hosts for _ in range(host.slots)]
    command = (
        *("srun", "--mpi=pmix", "--overlap", f"--nodes={len(request.hosts)}", f"--ntasks={len(names)}"),
        *(f"--nodelist={','.join(names)}", "--distribution=arbitrary", "--cpu-bind=none"),
        *("--kill-on-bad-exit=1", f"--chdir={Path.cwd()}", "--export=ALL"),
    )
    variables = {MARK: request.job, SIZE: str(request.ranks)}
    return Start(command, variables, "srun --mpi=pmix, as this MPI knows no Slurm")


def passed_on(environment: Mapping[str, str]) -> list[str]:
    """Return the variables that ranks on other hosts get: all but those of this host, shell and launcher."""
    return [
        name
        for name, value in environment.items()
        if _NAME.fullmatch(name)
        and "\n" not in value
        and (name == _KEPT_OF_XDG or not _OF_THIS_HOST.fullmatch(name))
    ]


def _slots_in_slurm(request: Request) -> dict[str, str]:
    """Return the variables that make Open MPI take slots as they are here, by node of the allocation.

    It takes a task for a slot, of which there may be one for all ranks. Were it not to ask Slurm, srun would
    start its daemons on any node.
    """
    slots = {host.name: host.slots for host in request.hosts}
    by_node = ",".join(str(slots.get(node, 1)) for node in request.nodes)
    # In an interactive step, srun would otherwise wait for that step's end.
    return {"SLURM_TASKS_PER_NODE": by_node, "SLURM_OVERLAP": "1"}


def _open_mpi(mpi: Mpi, request: Request) -> list[str]:
    arguments = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    if request.reach is not Reach.SRUN:
        arguments += ["--mca", "ras", "^slurm"]  # which would allow a rank for each task only
    arguments += ["-np", str(request.ranks), "-H", request.listed, "--bind-to", "none", "--map-by", "slot"]
    arguments += [*_MESSAGES, "--mca", "trainer_job", request.job]  # on the command line of its daemons
    if request.reach is Reach.LOCAL:
        return arguments
    arguments += [*_KEEPALIVE, "--wdir", str(Path.cwd()), *_daemons(mpi, request)]
    for layer in ("btl", "oob"):
        given = any(name.startswith(f"OMPI_MCA_{layer}_tcp_if_") for name in request.environment)
        if request.networks and not given:
            arguments += ["--mca", f"{layer}_tcp_if_include", ",".join(request.networks)]
    names = sorted({*passed_on(request.environment), MARK, SIZE})
    return [*arguments, *(word for name in names for word in ("-x", name))]


def _daemons(mpi: Mpi, request: Request) -> list[str]:
    """Return how Open MPI starts its daemons."""
    if request.reach is Reach.SRUN:
        # Slurm asks every process to end; a daemon that did would take its ranks with it before they save.
        daemon, orted = Path(__file__).with_name("daemon.py"), Path(mpi.mpirun).with_name("orted")
        return ["--mca", "orte_launch_agent", f"{sys.executable} {daemon} {orted}"]
    outside = ["--mca", "plm", "^slurm"] if "SLURM_JOB_ID" in request.environment else []
    if len(request.hosts) < _MANY_HOSTS:
        return outside
    together = ["--mca", "plm_rsh_num_concurrent", str(len(request.hosts))]
    return [*outside, "--mca", "plm_rsh_no_tree_spawn", "true", *together]


def _mpich(request: Request) -> list[str]:
    arguments = ["-np", str(request.ranks)]
    if request.reach is not Reach.LOCAL:  # its launcher passes on all variables, and the working folder
        arguments += ["-hosts", request.listed]
        arguments += ["-bootstrap", "slurm" if request.reach is Reach.SRUN else "ssh"]
    return [*arguments, "-bind-to", "none"]
