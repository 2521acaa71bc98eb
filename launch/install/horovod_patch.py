"""Patches for what is compiled of Horovod 0.28.1, which is older than the torch it must work with."""

from collections.abc import Callable
from pathlib import Path

from launch.install.runner_patch import replace_once

_STANDARD = "set(CMAKE_CXX_STANDARD 14)"
_PROJECT = "project(horovod CXX)\n"


def patch_standard(text: str, standard: int, name: str) -> str:
    """Raise the C++ standard of a CMakeLists.txt: torch's headers have refused C++14 since 2.1.

    Raises:
        SetupError: The text is not from Horovod 0.28.1.
    """
    return replace_once(text, _STANDARD, f"set(CMAKE_CXX_STANDARD {standard})", name)


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
    return replace_once(text, _PROJECT, _PROJECT + added, name)


def patch_debug_info(text: str, name: str) -> str:
    """Build without debug information, and with the same optimization.

    It made up a quarter of the compilers' time, a quarter of their memory, and 19 of the wheel's 20 MB.
    """
    flags = 'set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O2 -DNDEBUG")\n'  # Horovod itself raises -O2 to -O3
    return replace_once(text, _PROJECT, _PROJECT + flags, name)


def patch(source: Path, standard: int, folders: tuple[str, ...]) -> None:
    """Patch an unpacked source distribution in place."""
    changes: dict[str, Callable[[str, str], str]] = {
        "CMakeLists.txt": lambda text, name: patch_debug_info(
            patch_run_path(patch_standard(text, standard, name), folders, name), name
        ),
        "horovod/torch/CMakeLists.txt": lambda text, name: patch_standard(text, standard, name),
    }
    for name, change in changes.items():
        file = source / name
        file.write_text(change(file.read_text(encoding="utf-8"), name), encoding="utf-8")
