"""Which MPI starts the ranks."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from trainer.errors import UserError

_PATIENCE = 60.0  # seconds; a file system may be slow


class Kind(Enum):
    """An MPI whose options are known."""

    OPEN_MPI = "Open MPI"
    MPICH = "MPICH"  # and what has its launcher, Hydra: Intel's MPI, MVAPICH


@dataclass(frozen=True)
class Mpi:
    """An mpirun.

    Attributes:
        mpirun: Its absolute path: Open MPI then finds its daemon on every host without help of PATH.
        kind: Whose it is.
        version: Its version, or what it says of itself.
    """

    mpirun: str
    kind: Kind
    version: str

    def knows_slurm(self) -> bool:
        """Return whether it can start its daemons by srun."""
        if self.kind is Kind.MPICH:
            return True
        return "mca:plm:slurm:" in _output([str(Path(self.mpirun).with_name("ompi_info")), "--parsable"])


def find_mpi() -> Mpi:
    """Return the mpirun of this Python's environment, or else the one on PATH.

    Raises:
        UserError: There is none, or it is none that is known.
    """
    path = find_mpirun()
    if path is None:
        raise UserError(
            f"there is no mpirun beside {sys.executable} nor on PATH: use the Python that `make setup` made "
            "(.venv/bin/python), or load the cluster's MPI module"
        )
    said = _output([path, "--version"])
    if "Open MPI" in said or "OpenRTE" in said:
        found = re.search(r"\d+\.\d+\S*", said)
        return Mpi(path, Kind.OPEN_MPI, found[0] if found else said)
    if "HYDRA" in said or "MPICH" in said or "Intel(R) MPI" in said:
        found = re.search(r"Version:?\s+(\d\S*)", said)
        return Mpi(path, Kind.MPICH, found[1] if found else said)
    first = (said.strip().splitlines() or ["nothing"])[0]
    raise UserError(
        f"{path} --version says {first!r}: neither Open MPI nor MPICH; start the ranks with it yourself"
    )


def find_mpirun() -> str | None:
    """Return the path of mpirun: beside this Python, or else on PATH."""
    beside = [Path(sys.executable).parent / name for name in ("mpirun", "mpiexec")]
    paths = [str(path) for path in beside if os.access(path, os.X_OK)]
    found = paths[0] if paths else shutil.which("mpirun") or shutil.which("mpiexec")
    return os.path.abspath(found) if found else None  # noqa: PTH100  (a symbolic link stays one)


def srun_speaks_pmix() -> bool:
    """Return whether Slurm can start Open MPI's ranks itself."""
    return "pmix" in _output(["srun", "--mpi=list"])


def _output(command: list[str]) -> str:
    try:
        ran = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return ran.stdout
