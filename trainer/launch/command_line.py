"""The command that starts the ranks."""

import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    *("--mca", "oob_tcp_keepalive_intvl", "2"),
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


def by_mpirun(
    mpi: Mpi,
    hosts: Sequence[Host],
    reach: Reach,
    job: str,
    environment: Mapping[str, str],
    *,
    nodes: Sequence[str] = (),
    networks: Sequence[str] = (),
    options: Sequence[str] = (),
) -> Start:
    """Return how mpirun starts the ranks, without the program that they run.

    Args:
        mpi: Whose mpirun.
        hosts: The hosts in the order of their ranks, each with as many slots as ranks.
        reach: How its daemons get to them.
        job: The mark of the job's processes.
        environment: This process's variables, which the ranks get.
        nodes: The nodes of the Slurm allocation, if its srun starts the daemons.
        networks: The networks that all hosts share, such as "10.0.0.0/24"; none: MPI looks for itself.
        options: Further options, by the user.
    """
    ranks = sum(host.slots for host in hosts)
    variables = {MARK: job, SIZE: str(ranks)}
    if reach is Reach.SRUN:
        variables |= _slots_in_slurm(hosts, nodes)
    passed = [] if reach is Reach.LOCAL else passed_on(environment)
    build = _open_mpi if mpi.kind is Kind.OPEN_MPI else _mpich
    arguments = build(hosts, ranks, reach, job, sorted({*passed, MARK, SIZE}), networks, environment)
    how = f"{mpi.kind.value} {mpi.version}" + ("" if reach is Reach.LOCAL else f", daemons by {reach.value}")
    return Start((mpi.mpirun, *arguments, *options), variables, how)


def by_srun(hosts: Sequence[Host], job: str) -> Start:
    """Return how Slurm itself starts the ranks, by PMIx, without the program that they run."""
    names = [host.name for host in hosts for _ in range(host.slots)]
    command = (
        *("srun", "--mpi=pmix", "--overlap", f"--nodes={len(hosts)}", f"--ntasks={len(names)}"),
        *(f"--nodelist={','.join(names)}", "--distribution=arbitrary", "--cpu-bind=none"),
        *("--kill-on-bad-exit=1", f"--chdir={Path.cwd()}", "--export=ALL"),
    )
    return Start(command, {MARK: job, SIZE: str(len(names))}, "srun --mpi=pmix, as this MPI knows no Slurm")


def passed_on(environment: Mapping[str, str]) -> list[str]:
    """Return the variables that ranks on other hosts get: all but those of this host, shell and launcher."""
    return [
        name
        for name, value in environment.items()
        if _NAME.fullmatch(name)
        and "\n" not in value
        and (name == _KEPT_OF_XDG or not _OF_THIS_HOST.fullmatch(name))
    ]


def _slots_in_slurm(hosts: Sequence[Host], nodes: Sequence[str]) -> dict[str, str]:
    """Return the variables that make Open MPI take slots as they are here, by node of the allocation.

    It takes a task for a slot, of which there may be one for all ranks. Were it not to ask Slurm, srun would
    start its daemons on any node.
    """
    slots = {host.name: host.slots for host in hosts}
    by_node = ",".join(str(slots.get(node, 1)) for node in nodes)
    # In an interactive step, srun would otherwise wait for that step's end.
    return {"SLURM_TASKS_PER_NODE": by_node, "SLURM_OVERLAP": "1"}


def _open_mpi(
    hosts: Sequence[Host],
    ranks: int,
    reach: Reach,
    job: str,
    passed: Sequence[str],
    networks: Sequence[str],
    environment: Mapping[str, str],
) -> list[str]:
    arguments = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    if reach is not Reach.SRUN:
        arguments += ["--mca", "ras", "^slurm"]  # which would allow a rank for each task only
    arguments += ["-np", str(ranks), "-H", _listed(hosts)]
    arguments += ["--bind-to", "none", "--map-by", "slot", *_MESSAGES]
    arguments += ["--mca", "trainer_job", job]  # shows on the command line of its daemons
    if reach is Reach.LOCAL:
        return arguments
    arguments += [*_KEEPALIVE, "--wdir", str(Path.cwd())]
    if reach is Reach.SSH and "SLURM_JOB_ID" in environment:
        arguments += ["--mca", "plm", "^slurm"]  # hosts outside of the allocation
    if reach is Reach.SRUN:
        # Slurm asks every process to end; a daemon that did would take its ranks with it before they save.
        daemon = Path(__file__).with_name("daemon.py")
        arguments += ["--mca", "orte_launch_agent", f"{sys.executable} {daemon}"]
    if len(hosts) >= _MANY_HOSTS and reach is Reach.SSH:
        arguments += [
            "--mca",
            "plm_rsh_no_tree_spawn",
            "true",
            "--mca",
            "plm_rsh_num_concurrent",
            str(len(hosts)),
        ]
    if networks:
        for layer in ("btl", "oob"):
            if not any(name.startswith(f"OMPI_MCA_{layer}_tcp_if_") for name in environment):
                arguments += ["--mca", f"{layer}_tcp_if_include", ",".join(networks)]
    return [*arguments, *(word for name in passed for word in ("-x", name))]


def _mpich(
    hosts: Sequence[Host],
    ranks: int,
    reach: Reach,
    job: str,
    passed: Sequence[str],
    networks: Sequence[str],
    environment: Mapping[str, str],
) -> list[str]:
    arguments = ["-np", str(ranks)]
    if reach is not Reach.LOCAL:  # its launcher passes on all variables, and the working folder
        arguments += ["-hosts", _listed(hosts), "-bootstrap", "slurm" if reach is Reach.SRUN else "ssh"]
    return [*arguments, "-bind-to", "none"]


def _listed(hosts: Sequence[Host]) -> str:
    return ",".join(f"{host.name}:{host.slots}" for host in hosts)
