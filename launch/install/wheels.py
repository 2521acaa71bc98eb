"""Fill a folder with everything that `make setup WHEELS=<folder>` needs on a machine without a network."""

import ast
import os
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from launch.install import horovod_build, prerequisites
from launch.install.environment import explain_pip
from launch.install.mpi import PYPI_REQUIREMENT
from launch.install.progress import StepFailedError, pip_activity, run_step
from launch.install.settings import InputError, SetupError
from launch.install.steps import BUILD_TOOLS

SOURCE_ONLY = ["antlr4-python3-runtime==4.9.*"]
"""Dependencies of hydra-core that the index has as source only: pure Python, so one wheel fits all."""
BEFORE_PYTHON_3_11 = ["exceptiongroup", "tomli", "typing_extensions"]
"""What packages need on Python 3.10 only: pip evaluates that with its own Python, not the target's."""
GLIBC = (17, 24, 26, 27, 28, 31, 34)
"""The glibc versions 2.x, as in `manylinux_2_28`, whose wheels are accepted."""
NOT_DOWNLOADED = ("horovod", "torch")


def requirements(pyproject: str) -> list[str]:
    """Return the project's dependencies and those for development, without torch and Horovod.

    Those for the documentation site are left out: clusters do not build it.

    Args:
        pyproject: The text of pyproject.toml. Python 3.10 has no TOML parser, but these two lists are also
            valid Python.
    """
    names = []
    for name in ("dependencies", "dev"):
        found = re.search(rf"^{name} = (\[.*?^\])", pyproject, re.MULTILINE | re.DOTALL)
        if found is None:
            raise SetupError(f"pyproject.toml has no list `{name} = [...]`.")
        names += ast.literal_eval(found.group(1))
    return [text for text in names if re.split(r"[^A-Za-z0-9_.-]", text)[0].lower() not in NOT_DOWNLOADED]


def platforms(machine: str) -> list[str]:
    """Return the platform tags of Linux wheels for a processor architecture."""
    return [f"manylinux_2_{age}_{machine}" for age in reversed(GLIBC)] + [f"manylinux2014_{machine}"]


def target_arguments(python_version: str, machine: str) -> list[str]:
    """Return pip's arguments for downloading for another Python.

    Raises:
        InputError: The version is not valid.
    """
    if not re.fullmatch(r"3\.\d+", python_version) or int(python_version[2:]) < 10:  # noqa: PLR2004
        raise InputError(f"PYTHON_VERSION={python_version}: expected 3.10 or newer, such as 3.12.")
    arguments = ["--only-binary=:all:", "--implementation", "cp", "--python-version", python_version]
    for tag in platforms(machine):
        arguments += ["--platform", tag]
    return arguments


def fill(root: Path, folder: Path, torch: str, python_version: str) -> None:
    """Download all wheels, and Horovod's source, into a folder.

    Args:
        root: The repository.
        folder: The target folder; created if missing.
        torch: A version to include, or `system` if the cluster has its own.
        python_version: The cluster's Python, such as `3.12`; empty for the one that runs this.

    Raises:
        SetupError: A download failed.
    """
    version = python_version or f"3.{sys.version_info[1]}"
    target = target_arguments(version, platform.machine())
    wanted = [*requirements((root / "pyproject.toml").read_text(encoding="utf-8")), *BUILD_TOOLS]
    wanted += ["cmake>=3.18", PYPI_REQUIREMENT, *(BEFORE_PYTHON_3_11 if version == "3.10" else [])]
    wanted += [] if torch == "system" else [f"torch=={torch}"]
    prerequisites.check_venv()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="wheels-") as temporary:
        venv = Path(temporary) / "venv"
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        python = venv / "bin" / "python"
        to, find = ["--dest", str(folder)], ["--find-links", str(folder)]
        _pip(python, folder, "pip's own tools", ["install", *BUILD_TOOLS])
        _pip(
            python,
            folder,
            "wheels of sources",
            ["wheel", "--no-deps", "--wheel-dir", str(folder), *SOURCE_ONLY],
        )
        _pip(python, folder, f"wheels for Python {version}", ["download", *to, *find, *target, *wanted])
        log = _log(folder, "horovod-source")
        horovod_build.download_source(python, folder, log, dict(os.environ))
    count = len(list(folder.glob("*.whl")))
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file()) / 1e6
    print(f"{folder}: {count} wheels for Python {version}, Horovod's source; {size:.0f} MB")


def _pip(python: Path, folder: Path, title: str, arguments: list[str]) -> None:
    command = [str(python), "-m", "pip", arguments[0], "--progress-bar=off", "--disable-pip-version-check"]
    log = _log(folder, title.replace(" ", "-").replace("'", ""))
    try:
        run_step(title, [*command, *arguments[1:]], log=log, env=dict(os.environ), detail=pip_activity)
    except StepFailedError:
        text = log.read_text(encoding="utf-8", errors="replace")
        raise SetupError(f"{title}: {explain_pip(text, '')}\nLog: {log}") from None


def _log(folder: Path, name: str) -> Path:
    return folder / "log" / f"{name}.log"
