"""Check what must be on the machine before anything is installed; each error says how to get it."""

import importlib.util
import os
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path

from launch.install.settings import InputError


def check() -> None:
    """Check the interpreter that runs this, and the compiler.

    Raises:
        InputError: Something is missing.
    """
    check_venv()
    check_headers()
    find_compiler(os.environ)


def check_venv() -> None:
    """Raise InputError if this interpreter cannot create virtual environments."""
    if importlib.util.find_spec("ensurepip") is None or importlib.util.find_spec("venv") is None:
        raise InputError(
            f"{sys.executable} cannot create virtual environments: its modules venv and ensurepip are "
            "missing.\n"
            f"On Debian and Ubuntu: apt-get install python3-venv (or python{_minor()}-venv)."
        )


def check_headers() -> None:
    """Raise InputError if this interpreter has no C headers."""
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        raise InputError(
            f"{sys.executable} has no C headers (Python.h), which Horovod's build needs.\n"
            f"On Debian and Ubuntu: apt-get install python3-dev (or python{_minor()}-dev); "
            "on Red Hat and SUSE: python3-devel."
        )


def find_compiler(env: "os._Environ[str] | dict[str, str]") -> str:
    """Return the C++ compiler: `$CXX`, or the first of c++, g++, clang++ on PATH.

    Raises:
        InputError: None was found.
    """
    named = env.get("CXX", "")
    candidates = shlex.split(named)[:1] if named else ["c++", "g++", "clang++"]
    for name in candidates:
        if path := shutil.which(name, path=env.get("PATH")):
            return path
    looked = f"CXX={named} is not on PATH" if named else "none of c++, g++, clang++ is on PATH"
    raise InputError(
        f"No C++ compiler: {looked}. Horovod is built from source.\n"
        "On Debian and Ubuntu: apt-get install g++; on a cluster: load a compiler module; or set CXX."
    )


def _minor() -> str:
    return f"{sys.version_info[0]}.{sys.version_info[1]}"
