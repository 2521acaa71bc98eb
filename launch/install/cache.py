"""The user's cache of Horovod wheels: one folder for each combination that a wheel depends on."""

import hashlib
import os
import platform
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from launch.install.gpu import Gpu
from launch.install.mpi import Mpi
from launch.install.settings import HOROVOD_VERSION
from launch.install.torch_facts import TorchFacts


def recipe(folder: Path) -> str:
    """Return a digest of the code that patches and builds Horovod.

    A wheel that other code built is not reused.
    """
    names = ("horovod_patch.py", "horovod_build.py")
    steps = (folder / name for name in names)
    return hashlib.sha256(b"".join(step.read_bytes() for step in steps)).hexdigest()[:8]


RECIPE = recipe(Path(__file__).parent)


def key(torch: TorchFacts, mpi: Mpi, gpu: Gpu | None, *, machine: str, libc: str) -> str:
    """Return the name of a combination: everything that changes the compiled library.

    Args:
        torch: The torch that Horovod is compiled against, and Python's tag.
        mpi: The MPI that Horovod links to.
        gpu: CUDA's compiler and NCCL, or None.
        machine: The processor architecture, such as `x86_64`.
        libc: The C library, such as `glibc2.36`, because machines of different ages share homes.
    """
    parts = [
        f"horovod-{HOROVOD_VERSION}-{RECIPE}",
        f"torch-{torch.version}",
        f"{mpi.name}-{mpi.version}{'-system' if mpi.system else ''}",
        torch.python_tag,
        f"cuda-{torch.cuda or 'none'}",
        f"nccl-with-nvcc-{gpu.cuda_version}" if gpu else "cpu",
        machine,
        libc,
    ]
    return "_".join(parts)


def key_here(torch: TorchFacts, mpi: Mpi, gpu: Gpu | None) -> str:
    """Return the key for this machine."""
    return key(torch, mpi, gpu, machine=platform.machine(), libc="".join(platform.libc_ver()))


def store(env: Mapping[str, str]) -> Path:
    """Return the folder of this user's wheels."""
    home = env.get("XDG_CACHE_HOME") or str(Path(env.get("HOME") or Path.home()) / ".cache")
    return Path(home) / "hybrid-trainer" / "wheels"


def find(folder: Path) -> Path | None:
    """Return the wheel in the folder of a combination, or None."""
    return next(iter(sorted(folder.glob("horovod-*.whl"))), None)


def put(wheel: Path, folder: Path) -> Path:
    """Store a wheel atomically, and return its path.

    The folder appears by one rename. If another build was faster, its wheel is just as good and stays.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    try:
        shutil.copy2(wheel, partial / wheel.name)
        partial.chmod(0o755)
        try:
            os.rename(partial, folder)  # noqa: PTH104 - Path.rename is no clearer
        except OSError:
            if find(folder) is None:
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    stored = find(folder)
    if stored is None:
        raise FileNotFoundError(folder)
    return stored
