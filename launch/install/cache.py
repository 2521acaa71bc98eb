"""The user's store of built Horovod wheels: one folder per combination that a wheel depends on."""

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
    """Returns a digest of how Horovod is patched and built, from the code that does it.

    A wheel that other code made is not used again.
    """
    steps = (folder / name for name in ("horovod_patch.py", "horovod_build.py"))
    return hashlib.sha256(b"".join(step.read_bytes() for step in steps)).hexdigest()[:8]


RECIPE = recipe(Path(__file__).parent)


def key(torch: TorchFacts, mpi: Mpi, gpu: Gpu | None, *, machine: str, libc: str) -> str:
    """Returns the name of the combination; whatever changes the compiled library is part of it.

    Args:
        torch: Its version with the local part, and Python's tag.
        mpi: The MPI that it links with.
        gpu: CUDA's compiler, or None.
        machine: Processor architecture, such as ``x86_64``.
        libc: C library, such as ``glibc2.36``: homes are shared between machines of different age.
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
    """Returns the key on this machine."""
    return key(torch, mpi, gpu, machine=platform.machine(), libc="".join(platform.libc_ver()))


def store(env: Mapping[str, str]) -> Path:
    """Returns the folder that holds this user's wheels."""
    home = env.get("XDG_CACHE_HOME") or str(Path(env.get("HOME") or Path.home()) / ".cache")
    return Path(home) / "hybrid-trainer" / "wheels"


def find(folder: Path) -> Path | None:
    """Returns the wheel in one combination's folder, or None."""
    return next(iter(sorted(folder.glob("horovod-*.whl"))), None)


def put(wheel: Path, folder: Path) -> Path:
    """Stores a wheel, whole or not at all, and returns its place.

    The folder appears by one rename. Where another build was faster, its wheel is as good and stays.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    try:
        shutil.copy2(wheel, partial / wheel.name)
        partial.chmod(0o755)
        try:
            os.rename(partial, folder)  # noqa: PTH104 - Path.rename would say the same in more words
        except OSError:
            if find(folder) is None:
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    stored = find(folder)
    if stored is None:
        raise FileNotFoundError(folder)
    return stored
