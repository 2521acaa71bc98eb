"""Which launcher started this process: told by the variables that launchers set, which shells also inherit.

MPI's own launcher      mpirun, horovodrun, srun --mpi=pmix: its server answers
another launcher        torchrun, another MPI's mpiexec, srun without MPI: processes that MPI does not join
none                    a shell of a job, or of one that has ended: its variables are left over
"""

import os
import socket
import stat
from collections.abc import Mapping, MutableMapping

from trainer.distributed.failure import give_head_start
from trainer.errors import UserError

# Variables that say how many processes a launcher started. Those of Slurm and torchrun count with others.
_SIZES = (
    "OMPI_COMM_WORLD_SIZE",
    "PMI_SIZE",
    "MPI_LOCALNRANKS",
    "MV2_COMM_WORLD_SIZE",
    "JSM_NAMESPACE_SIZE",
    "PALS_NRANKS",
    "FLUX_JOB_SIZE",
)
_RANKS = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID", "RANK")

# What Open MPI's launcher sets for its processes, and no user does.
_OF_OPEN_MPI = (
    "PMIX_",
    "OMPI_COMM_WORLD_",
    "OMPI_MCA_orte_",
    "OMPI_MCA_ess",
    "OMPI_MCA_pmix",
    "OMPI_UNIVERSE_",
)
_SERVER = "PMIX_SERVER_URI"
_ASKED = "TRAINER_WORLD_SIZE"  # by `python -m trainer.launch`
_PATIENCE = 1.0  # seconds for a server on this machine to answer


def settle(environment: MutableMapping[str, str] = os.environ) -> None:
    """Forget a launcher that did not start this process, so that it starts as a single one.

    Raises:
        UserError: A launcher started several processes, and it is not MPI's.
    """
    if _answers(environment):
        return
    claim, rank = _claim(environment), _rank(environment)
    # Open MPI then starts without its launcher.
    for name in [name for name in environment if name.startswith(_OF_OPEN_MPI)]:
        del environment[name]
    environment["OMPI_MCA_ess_singleton_isolated"] = "1"
    if _has_pmi(environment):
        return  # MPI may be the one of that launcher: `check_size` will show
    for name in ("PMI_RANK", "SLURM_STEP_ID", "SLURM_STEPID"):
        environment.pop(name, None)
    if claim is not None:
        if rank > 0:
            give_head_start(rank)  # the end of the first ends the others, which MPI does not join
        raise _refusal(*claim)
    environment.pop(_ASKED, None)


def _rank(environment: Mapping[str, str]) -> int:
    """Return the rank that any launcher gives this process, or 0."""
    return next((int(environment[name]) for name in _RANKS if environment.get(name, "").isdigit()), 0)


def check_size(size: int, environment: Mapping[str, str] = os.environ) -> None:
    """Return if MPI joins as many processes as the launcher says that it has started.

    Raises:
        UserError: MPI knows of this process alone, or of another number than the user has asked for.
    """
    asked = environment.get(_ASKED, "")
    if asked.isdigit() and int(asked) != size:
        raise UserError(
            f"{_ASKED}={asked}: trainer.launch was to start {asked} processes, but MPI joins {size}: some "
            f"did not start; or if another launcher started these, unset {_ASKED}"
        )
    mpirun = "OMPI_COMM_WORLD_SIZE"  # where it is set, mpirun started the process, whatever started mpirun
    claim = _claim({mpirun: environment[mpirun]} if mpirun in environment else environment)
    if size == 1 and claim is not None:
        raise _refusal(*claim)


def _claim(environment: Mapping[str, str]) -> tuple[str, int] | None:
    """Return a variable that says that a launcher has started several processes, and their number."""
    names = list(_SIZES)
    if "LOCAL_RANK" in environment and "RANK" in environment:
        names.append("WORLD_SIZE")  # torchrun's; alone it is anybody's
    if "SLURM_STEP_ID" in environment or "SLURM_STEPID" in environment:
        of_step = "SLURM_STEP_NUM_TASKS"
        names.append(of_step if of_step in environment else "SLURM_NTASKS")
    for name in names:
        if environment.get(name, "").isdigit() and int(environment[name]) > 1:
            return name, int(environment[name])
    return None


def _refusal(name: str, size: int) -> UserError:
    of_slurm = name if name.startswith("SLURM") else None
    others = {"WORLD_SIZE": " RANK", of_slurm: " SLURM_STEP_ID", "PMI_SIZE": " PMI_RANK"}.get(name, "")
    return UserError(
        f"{name}={size}: a launcher seems to have started {size} processes, but MPI does not join them. Use "
        f"the launcher of the MPI that mpi4py has: horovodrun -np {size}, mpirun -np {size}, or in Slurm "
        f"srun --mpi=pmix. If no launcher started this process, variables are left over: unset {name}{others}"
    )


def _answers(environment: Mapping[str, str]) -> bool:
    """Return whether the launcher that Open MPI's variables speak of still runs."""
    servers = {value for name, value in environment.items() if name.startswith(_SERVER)}
    return any(_reaches(server) for server in servers)


def _reaches(server: str) -> bool:
    """Return whether a server listens; its address is such as `123.0;tcp4://127.0.0.1:4711`."""
    kind, _, address = server.rpartition(";")[2].partition("://")
    host, _, port = address.rpartition(":")
    if not kind.startswith("tcp") or not port.isdigit():
        return True  # another kind of address
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE):
            return True
    except OSError:
        return False


def _has_pmi(environment: Mapping[str, str]) -> bool:
    """Return whether another MPI's launcher has left this process a connection to it."""
    if "PMI_PORT" in environment or "PALS_APID" in environment:
        return True
    try:
        return stat.S_ISSOCK(os.fstat(int(environment.get("PMI_FD", ""))).st_mode)
    except (ValueError, OSError):
        return False
