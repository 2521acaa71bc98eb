"""What has to change in the source of Horovod 0.28.1, which is older than the torch it must work with."""

from collections.abc import Callable
from pathlib import Path

from launch.install.settings import HOROVOD_VERSION, SetupError

_STANDARD = "set(CMAKE_CXX_STANDARD 14)"
_PROJECT = "project(horovod CXX)\n"
_GLOO_FAILED = "\n        exit_code, timestamp = value\n        if exit_code != 0:\n"
_SHELL = "['/bin/sh', '-c', mpirun_command]"


def patch_standard(text: str, standard: int, name: str) -> str:
    """Raises the C++ standard of a CMakeLists.txt: torch's headers refuse 14 since 2.1.

    Raises:
        SetupError: The text is not the one of Horovod 0.28.1.
    """
    return _replace_once(text, _STANDARD, f"set(CMAKE_CXX_STANDARD {standard})", name)


def patch_run_path(text: str, folders: tuple[str, ...], name: str) -> str:
    """Makes the library look for MPI and torch relative to itself.

    CMake would write the absolute paths of the environment it was built in, and a cached wheel serves
    others. ``lib/python3.x/site-packages/horovod/torch/`` is four folders below ``lib/``, where Open MPI's
    libraries are.

    Args:
        text: The main CMakeLists.txt.
        folders: Further folders, absolute, for a system MPI.
        name: The file's name, for the message.
    """
    paths = ";".join(["$ORIGIN/../../../..", "$ORIGIN/../../torch/lib", *folders])
    added = f'set(CMAKE_BUILD_WITH_INSTALL_RPATH ON)\nset(CMAKE_INSTALL_RPATH "{paths}")\n'
    return _replace_once(text, _PROJECT, _PROJECT + added, name)


def patch_exit_code(text: str, name: str) -> str:
    """Makes `horovodrun --gloo` end with the failed rank's exit code, as `horovodrun` does.

    It would raise an error of its own, hence end with 1, and bury the rank's message under a traceback.
    """
    return _replace_once(text, _GLOO_FAILED, f"{_GLOO_FAILED}            raise SystemExit(exit_code)\n", name)


def patch_signals(text: str, name: str) -> str:
    """Makes `horovodrun` become mpirun, so that a signal to its process, by `kill`, ends the ranks too.

    It would become a shell that waits for mpirun. The shell alone would end, and the ranks would run on.
    """
    return _replace_once(text, _SHELL, "['/bin/sh', '-c', 'exec ' + mpirun_command]", name)


def patch(source: Path, standard: int, folders: tuple[str, ...]) -> None:
    """Patches an unpacked source distribution in place."""
    changes: dict[str, Callable[[str, str], str]] = {
        "CMakeLists.txt": lambda text, name: patch_run_path(
            patch_standard(text, standard, name), folders, name
        ),
        "horovod/torch/CMakeLists.txt": lambda text, name: patch_standard(text, standard, name),
        "horovod/runner/gloo_run.py": patch_exit_code,
        "horovod/runner/mpi_run.py": patch_signals,
    }
    for name, change in changes.items():
        file = source / name
        file.write_text(change(file.read_text(encoding="utf-8"), name), encoding="utf-8")


def _replace_once(text: str, old: str, new: str, name: str) -> str:
    count = text.count(old)
    if count != 1:
        raise SetupError(
            f"{name} of Horovod's source has '{old.strip()}' {count} times, expected once: this is not the "
            f"source of Horovod {HOROVOD_VERSION}. Is another horovod archive in the folder of wheels?"
        )
    return text.replace(old, new)
