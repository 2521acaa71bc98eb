"""Patches for the source of Horovod 0.28.1, which is older than the torch it must work with."""

import shutil
from collections.abc import Callable
from pathlib import Path

from launch.install.settings import HOROVOD_VERSION, SetupError

SUPERVISOR = Path(__file__).with_name("supervise_mpirun.py")

_STANDARD = "set(CMAKE_CXX_STANDARD 14)"
_PROJECT = "project(horovod CXX)\n"
_GLOO_FAILED = "\n        exit_code, timestamp = value\n        if exit_code != 0:\n"
_EXECUTE = "        os.execve('/bin/sh', ['/bin/sh', '-c', mpirun_command], env)\n"
_SUPERVISE = (
    "        from horovod.runner.supervise_mpirun import supervise\n        supervise(mpirun_command, env)\n"
)
_COMMAND_LINE = "def run_commandline():\n"
_BEFORE_RANKS = (
    "    from horovod.runner.supervise_mpirun import end_at_once_before_ranks_start\n"
    "    end_at_once_before_ranks_start()\n"
)
_OPTIONS = "'-l' if impi_or_mpich else '--allow-run-as-root --tag-output'"
_IS_MPICH = "        elif 'MPICH' in output:\n"


def patch_standard(text: str, standard: int, name: str) -> str:
    """Raise the C++ standard of a CMakeLists.txt: torch's headers have refused C++14 since 2.1.

    Raises:
        SetupError: The text is not from Horovod 0.28.1.
    """
    return _replace_once(text, _STANDARD, f"set(CMAKE_CXX_STANDARD {standard})", name)


def patch_run_path(text: str, folders: tuple[str, ...], name: str) -> str:
    """Make the library look for MPI and torch relative to itself.

    CMake would record the absolute paths of the environment of the build, but other environments use the
    cached wheel. `lib/python3.x/site-packages/horovod/torch/` is four folders below `lib/`, which has Open
    MPI's libraries.

    Args:
        text: The main CMakeLists.txt.
        folders: More folders, absolute, for a system MPI.
        name: The file's name, for error messages.
    """
    paths = ";".join(["$ORIGIN/../../../..", "$ORIGIN/../../torch/lib", *folders])
    added = f'set(CMAKE_BUILD_WITH_INSTALL_RPATH ON)\nset(CMAKE_INSTALL_RPATH "{paths}")\n'
    return _replace_once(text, _PROJECT, _PROJECT + added, name)


def patch_debug_info(text: str, name: str) -> str:
    """Build without debug information, and with the same optimization.

    It made up a quarter of the compilers' time, a quarter of their memory, and 19 of the wheel's 20 MB.
    """
    flags = 'set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O2 -DNDEBUG")\n'  # Horovod itself raises -O2 to -O3
    return _replace_once(text, _PROJECT, _PROJECT + flags, name)


def patch_exit_code(text: str, name: str) -> str:
    """Make `horovodrun --gloo` exit with the failed rank's exit code, as `horovodrun` does with MPI.

    Unpatched, it raises its own error: it exits with 1 and buries the rank's message under a traceback.
    """
    return _replace_once(text, _GLOO_FAILED, f"{_GLOO_FAILED}            raise SystemExit(exit_code)\n", name)


def patch_signals(text: str, name: str) -> str:
    """Make `horovodrun` pass signals on, so that the ranks save before they end.

    Unpatched, it replaces itself by a shell that waits for mpirun. A signal ends that shell alone, and the
    ranks keep running. And mpirun would kill them two seconds after a SIGTERM.
    """
    return _replace_once(text, _EXECUTE, _SUPERVISE, name)


def patch_start(text: str, name: str) -> str:
    """Make a signal to `horovodrun` end it with one line before its ranks start, which takes seconds."""
    return _replace_once(text, _COMMAND_LINE, _COMMAND_LINE + _BEFORE_RANKS, name)


def patch_options(text: str, name: str) -> str:
    """Leave lines of output as they are, and take slots from `-np` and `-H` alone, as `horovodrun` states.

    Unpatched, it has Open MPI tag every line with `[1,0]<stdout>:`; `--mpi-args=--tag-output` still does, and
    `--mpi-args=-l` with MPICH. In a Slurm allocation, Open MPI would take a task for a slot: two ranks would
    not start in a task of 2 CPUs.
    """
    return _replace_once(
        text, _OPTIONS, "'' if impi_or_mpich else '--allow-run-as-root -mca ras ^slurm'", name
    )


def patch_mpich(text: str, name: str) -> str:
    """Make `horovodrun` know MPICH, whose `mpirun --version` speaks of Hydra, its process manager.

    Unpatched, it looks for the name in capitals, which is there by chance, in the options of some builds.
    """
    known = "        elif 'MPICH' in output or 'HYDRA build details' in output:\n"
    return _replace_once(text, _IS_MPICH, known, name)


def patch(source: Path, standard: int, folders: tuple[str, ...]) -> None:
    """Patch an unpacked source distribution in place."""
    changes: dict[str, Callable[[str, str], str]] = {
        "CMakeLists.txt": lambda text, name: patch_debug_info(
            patch_run_path(patch_standard(text, standard, name), folders, name), name
        ),
        "horovod/torch/CMakeLists.txt": lambda text, name: patch_standard(text, standard, name),
        "horovod/runner/gloo_run.py": patch_exit_code,
        "horovod/runner/launch.py": patch_start,
        "horovod/runner/mpi_run.py": lambda text, name: patch_mpich(
            patch_options(patch_signals(text, name), name), name
        ),
    }
    for name, change in changes.items():
        file = source / name
        file.write_text(change(file.read_text(encoding="utf-8"), name), encoding="utf-8")
    shutil.copy(SUPERVISOR, source / "horovod" / "runner")


def _replace_once(text: str, old: str, new: str, name: str) -> str:
    count = text.count(old)
    if count != 1:
        raise SetupError(
            f"{name} of Horovod's source contains '{old.strip()}' {count} times, expected once: this is not "
            f"the source of Horovod {HOROVOD_VERSION}. Does the folder of wheels have another?"
        )
    return text.replace(old, new)
