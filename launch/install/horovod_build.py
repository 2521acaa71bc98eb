"""Build Horovod's wheel from its source distribution, and explain why a build failed."""

import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

from launch.install import horovod_patch
from launch.install.environment import Environment, explain_pip
from launch.install.gpu import Gpu, find_cuda_home
from launch.install.mpi import Mpi
from launch.install.progress import StepFailedError, cmake_percent, run_step
from launch.install.settings import HOROVOD_VERSION, SetupError
from launch.install.torch_facts import TorchFacts

BYTES_PER_JOB = 2_000_000_000
"""Memory for one compiler: 1.7 GB were measured on torch's headers."""


def flags(gpu: Gpu | None, nccl_link: Path, jobs: int) -> dict[str, str]:
    """Return the environment variables that select what Horovod's build includes.

    Args:
        gpu: CUDA and NCCL, or None.
        nccl_link: A folder with `libnccl.so`, the name that linkers look for.
        jobs: The number of compilers to run at a time.
    """
    chosen = {
        "HOROVOD_WITH_PYTORCH": "1",
        "HOROVOD_WITHOUT_TENSORFLOW": "1",
        "HOROVOD_WITHOUT_MXNET": "1",
        "HOROVOD_WITH_MPI": "1",
        "HOROVOD_WITH_GLOO": "1",
        # Horovod's CMake files request policies that CMake 4 removed.
        "CMAKE_POLICY_VERSION_MINIMUM": "3.5",
        "MAKEFLAGS": f"-j{jobs}",
    }
    if gpu:
        chosen |= {
            "HOROVOD_GPU_OPERATIONS": "NCCL",
            "CUDA_HOME": str(gpu.cuda_home),
            "HOROVOD_CUDA_HOME": str(gpu.cuda_home),
            "HOROVOD_NCCL_INCLUDE": str(gpu.nccl_include),
            "HOROVOD_NCCL_LIB": str(nccl_link),
            # Torch has loaded its NCCL before Horovod is imported; a static NCCL would be a second copy.
            "HOROVOD_NCCL_LINK": "SHARED",
        }
    return chosen


def toolkit(torch: TorchFacts, env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that say where CUDA is, for a build without NCCL.

    Horovod compiles its copies between GPU and host memory all the same where torch has CUDA and there is an
    nvcc, even if that is a script in a folder without CUDA's headers, such as /usr/local/bin/nvcc.
    """
    home = find_cuda_home(env) if torch.cuda else None
    return {name: str(home) for name in ("CUDA_HOME", "HOROVOD_CUDA_HOME") if home}


def default_jobs() -> int:
    """Return how many compilers to run: one a core that this process may use, as memory allows."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(len(os.sched_getaffinity(0)), memory // BYTES_PER_JOB))


def build(
    environment: Environment, *, torch: TorchFacts, mpi: Mpi, gpu: Gpu | None, folder: Path, jobs: int
) -> Path:
    """Build the wheel in `folder`, and return its path.

    Raises:
        SetupError: The source is not available, or the build failed; the message says why.
    """
    source = _unpack(_fetch(environment, folder), folder)
    horovod_patch.patch(source, torch.cxx_standard, mpi.library_folders)
    nccl_link = folder / "nccl"
    if gpu:
        nccl_link.mkdir()
        (nccl_link / "libnccl.so").symlink_to(gpu.nccl_library.resolve())
    env = _clean(environment.variables())
    env |= ({} if gpu else toolkit(torch, env)) | flags(gpu, nccl_link, jobs)
    _check_compiler(env, torch)
    command = [
        str(environment.python),
        "-m",
        "pip",
        "wheel",
        "-v",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
    ]
    title = f"Horovod {HOROVOD_VERSION} {'(NCCL)' if gpu else '(CPU)'}"
    log = environment.log("horovod-build")
    try:
        run_step(title, [*command, "-w", str(folder), str(source)], log=log, env=env, detail=cmake_percent)
    except StepFailedError:
        text = log.read_text(encoding="utf-8", errors="replace")
        raise SetupError(f"Horovod's build failed. {explain(text)}\nLog: {log}") from None
    (wheel,) = folder.glob("horovod-*.whl")
    return wheel


_DROPPED = ("MAKE", "MFLAGS", "HOROVOD_WITH", "HOROVOD_GPU", "HOROVOD_NCCL", "HOROVOD_SKIP")


def _clean(env: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without the variables of the calling make and of other Horovod builds."""
    return {name: value for name, value in env.items() if not name.startswith(_DROPPED)}


def _fetch(environment: Environment, folder: Path) -> Path:
    """Return Horovod's source archive, from the folder of wheels or the package index."""
    archive = f"horovod-{HOROVOD_VERSION}.tar.gz"
    if environment.wheels:
        found = Path(environment.wheels) / archive
        if not found.exists():
            raise SetupError(f"{environment.wheels} has no {archive}. Refill the folder with `make wheels`.")
        return found
    download_source(environment.python, folder, environment.log("horovod-source"), environment.variables())
    return folder / archive


def download_source(python: Path, folder: Path, log: Path, env: Mapping[str, str]) -> None:
    """Download Horovod's source archive; `python` needs pip, setuptools, packaging and wheel."""
    command = [str(python), "-m", "pip", "download", "--progress-bar=off", "--no-deps", "--no-binary=:all:"]
    command += ["--no-build-isolation", "-d", str(folder), f"horovod=={HOROVOD_VERSION}"]
    # pip runs its setup.py only for the name and version; nothing is compiled.
    quiet = dict(env) | {"HOROVOD_WITHOUT_PYTORCH": "1"}
    try:
        run_step("Horovod's source", command, log=log, env=quiet)
    except StepFailedError:
        text = log.read_text(encoding="utf-8", errors="replace")
        raise SetupError(f"Horovod's source: {explain_pip(text, '')}\nLog: {log}") from None


def _unpack(archive: Path, folder: Path) -> Path:
    with tarfile.open(archive) as tar:
        if hasattr(tarfile, "data_filter"):
            tar.extractall(folder, filter="data")
        else:  # Python 3.10 and 3.11 before their last security releases
            tar.extractall(folder)
    return folder / f"horovod-{HOROVOD_VERSION}"


def _check_compiler(env: Mapping[str, str], torch: TorchFacts) -> None:
    """Compile a two-line file in the C++ standard that torch needs, before spending minutes on a build."""
    compiler = (env.get("CXX") or shutil.which("c++", path=env["PATH"]) or "g++").split()
    standard = torch.cxx_standard
    header, oldest = ("compare", 11) if standard >= 20 else ("optional", 9)  # noqa: PLR2004 - C++20
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder) / "probe.cc"
        probe.write_text(f"#include <{header}>\nint main() {{ return 0; }}\n", encoding="utf-8")
        command = [*compiler, f"-std=c++{standard}", "-c", str(probe), "-o", str(probe.with_suffix(".o"))]
        done = subprocess.run(command, env=dict(env), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SetupError(
            f"torch {torch.version} needs a C++{standard} compiler, and `{' '.join(compiler)} "
            f"-std=c++{standard}` fails:\n{done.stderr.strip()[:500]}\n"
            f"Install g++ {oldest} or newer, load a newer compiler module, or set CXX."
        )


_HINTS = (
    (r"Python\.h: No such file", "Install Python's C headers (python3-dev, python3-devel)."),
    (r"Killed|internal compiler error|cannot allocate memory", "Memory ran out: try again with JOBS=1."),
    (r"No space left on device", "The disk is full. Set TMPDIR to another folder for the build."),
    (
        r"nccl\.h|NCCL_LIBRARY|Could NOT find NCCL",
        "Set NCCL_HOME to a folder with include/nccl.h and lib/libnccl.so.",
    ),
    (
        r"nvcc|CUDA",
        "Set CUDA_HOME to the toolkit of torch's CUDA version, or build without GPU support: GPU=no.",
    ),
    (r"Could NOT find MPI|mpi\.h", "MPI's compiler wrapper does not work: try `mpicxx --version`."),
    (
        r"No CMAKE_CXX_COMPILER|not able to compile a simple test",
        "Install a working C++ compiler (g++), or set CXX.",
    ),
    (r"cmake.*No such file|Failed to install temporary CMake", "CMake is missing: run `make clean setup`."),
)


def explain(log: str) -> str:
    """Return the first error in a build log, and what to do about it."""
    lines = log.splitlines()
    pattern = re.compile(r"\berror:|fatal error|CMake Error|Error: |No space left|Killed|undefined reference")
    found = [index for index, line in enumerate(lines) if pattern.search(line)]
    # CMake prints the details in the lines after its heading.
    shown = [line.strip() for line in lines[found[0] : found[0] + 6] if line.strip()] if found else lines[-6:]
    excerpt = "\n".join(shown)
    hint = next((text for expression, text in _HINTS if re.search(expression, excerpt)), "")
    return "\n".join(part for part in ("The first error:", excerpt, hint) if part)
