"""Decide whether Horovod averages GPU tensors with NCCL, and find CUDA's compiler and NCCL."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from launch.install.settings import InputError
from launch.install.torch_facts import TorchFacts

_LIBRARIES = ("lib/libnccl.so*", "lib64/libnccl.so*", "lib/*-linux-gnu/libnccl.so*")
_WITHOUT = "GPU=no builds Horovod without GPU support."


@dataclass(frozen=True)
class Gpu:
    """What a build with NCCL needs.

    Attributes:
        cuda_home: The folder whose `bin` has nvcc.
        cuda_version: The version of that toolkit, such as `13.0`.
        nccl_include: The folder of `nccl.h`.
        nccl_library: The library file itself; pip's package has it only as `libnccl.so.2`.
    """

    cuda_home: Path
    cuda_version: str
    nccl_include: Path
    nccl_library: Path


def plan(choice: str, torch: TorchFacts, env: Mapping[str, str], *, strict: bool) -> Gpu | None:
    """Return what a build with NCCL needs, or None for a build without GPU support.

    Args:
        choice: `auto`, `yes` or `no`.
        torch: The torch to build against.
        env: The process environment; CUDA_HOME, NCCL_HOME and PATH are read.
        strict: Whether `auto` also fails where torch has CUDA but its compiler is missing.

    Raises:
        InputError: NCCL is wanted, but CUDA's compiler or NCCL is missing.
    """
    if choice == "no" or (choice == "auto" and not torch.cuda):
        return None
    if not torch.cuda:
        raise InputError(
            f"GPU=yes: torch {torch.version} has no CUDA. Choose another torch with TORCH=, or use GPU=auto."
        )
    home = find_cuda_home(env)
    if home is None:
        if choice == "auto" and not strict:
            return None
        raise InputError(
            f"torch {torch.version} uses CUDA {torch.cuda}, but no nvcc was found in CUDA_HOME, on PATH or "
            "in /usr/local/cuda. Load the cluster's CUDA module, or install the CUDA toolkit and set "
            f"CUDA_HOME. {_WITHOUT}"
        )
    version = nvcc_version(home)
    major = torch.cuda.partition(".")[0]
    if version.partition(".")[0] != major:
        raise InputError(
            f"torch {torch.version} uses CUDA {torch.cuda}, but {home} is CUDA {version or '(unknown)'}. "
            f"Set CUDA_HOME to a CUDA {major} toolkit. {_WITHOUT}"
        )
    include, library = find_nccl(torch, home, env)
    return Gpu(home, version, include, library)


def find_cuda_home(env: Mapping[str, str]) -> Path | None:
    """Return the folder whose `bin` has nvcc, or None."""
    for name in ("HOROVOD_CUDA_HOME", "CUDA_HOME", "CUDA_PATH"):
        if env.get(name) and (Path(env[name]) / "bin" / "nvcc").exists():
            return Path(env[name])
    if on_path := shutil.which("nvcc", path=env.get("PATH", os.defpath)):
        home = Path(on_path).resolve().parent.parent
        # An nvcc on PATH may be a script that calls another one.
        if (home / "include" / "cuda_runtime.h").exists():
            return home
    usual = Path("/usr/local/cuda")
    return usual if (usual / "bin" / "nvcc").exists() else None


def nvcc_version(home: Path) -> str:
    """Return the version of a CUDA toolkit, such as `13.0`, or an empty string."""
    done = subprocess.run([home / "bin" / "nvcc", "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"release ([\d.]+)", done.stdout)
    return found.group(1) if found else ""


def find_nccl(torch: TorchFacts, cuda_home: Path, env: Mapping[str, str]) -> tuple[Path, Path]:
    """Return the folder of `nccl.h` and the NCCL library.

    The user's choice comes first, then the pip package beside torch (the one that torch itself loads),
    then the CUDA toolkit and the system.

    Raises:
        InputError: NCCL was not found.
    """
    beside = Path(torch.folder).parent / "nvidia" / "nccl"
    named = [Path(env[name]) for name in ("HOROVOD_NCCL_HOME", "NCCL_HOME") if env.get(name)]
    places = [*named, beside, cuda_home, Path("/usr/local"), Path("/usr")]
    for place in places:
        library = next((file for pattern in _LIBRARIES for file in sorted(place.glob(pattern))), None)
        if library and (place / "include" / "nccl.h").exists():
            return place / "include", library
    raise InputError(
        f"torch {torch.version} uses CUDA, but NCCL (include/nccl.h and libnccl.so) was found in none of "
        f"{', '.join(map(str, places))}. Install the pip package "
        f"nvidia-nccl-cu{torch.cuda.partition('.')[0]}, or set NCCL_HOME. {_WITHOUT}"
    )


def driver_present() -> bool:
    """Return whether this machine has an NVIDIA driver."""
    return Path("/dev/nvidiactl").exists() or Path("/proc/driver/nvidia/version").exists()
