"""The virtual environment, and pip in it."""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.install.progress import StepFailedError, pip_activity, run_step
from launch.install.settings import InputError, SetupError
from launch.install.torch_facts import TorchFacts


@dataclass(frozen=True)
class Environment:
    """A virtual environment, and where its packages come from.

    Attributes:
        folder: The environment's folder.
        wheels: The folder that all packages come from; empty for the package index.
    """

    folder: Path
    wheels: str

    @property
    def python(self) -> Path:
        """Return the interpreter."""
        return self.folder / "bin" / "python"

    @property
    def packages(self) -> Path:
        """Return the folder of its packages."""
        (found,) = (self.folder / "lib").glob("python*/site-packages")
        return found

    @property
    def constraints(self) -> Path:
        """Return the file of versions that no later `pip install` of the set-up may change."""
        return self.folder / "constraints.txt"

    def log(self, name: str) -> Path:
        """Return the path of a step's log."""
        return self.folder / "log" / f"{name}.log"

    def variables(self) -> dict[str, str]:
        """Return the process environment with this virtual environment activated."""
        env = {name: value for name, value in os.environ.items() if name != "PYTHONHOME"}
        env["VIRTUAL_ENV"] = str(self.folder)
        env["PATH"] = f"{self.folder / 'bin'}{os.pathsep}{env.get('PATH', '')}"
        return env

    def pip_install(self, title: str, arguments: Sequence[str], name: str) -> None:
        """Install with pip, from the folder of wheels alone if there is one.

        Raises:
            SetupError: pip failed; the message says why and what to do.
        """
        command = [
            str(self.python),
            "-m",
            "pip",
            "install",
            "--progress-bar=off",
            "--disable-pip-version-check",
        ]
        if self.constraints.exists():
            command += ["--constraint", str(self.constraints)]
        if self.wheels:
            command += ["--no-index", "--find-links", self.wheels]
        try:
            run_step(
                title, [*command, *arguments], log=self.log(name), env=self.variables(), detail=pip_activity
            )
        except StepFailedError as failure:
            text = failure.log.read_text(encoding="utf-8", errors="replace")
            raise SetupError(f"{title}: {explain_pip(text, self.wheels)}\nLog: {failure.log}") from None

    def pip_uninstall(self, name: str) -> None:
        """Uninstall a package."""
        command = [str(self.python), "-m", "pip", "uninstall", "--yes", "--disable-pip-version-check", name]
        run_step(f"remove {name}", command, log=self.log("uninstall"), env=self.variables())

    def has_program(self, name: str) -> bool:
        """Return whether a program was installed into this environment."""
        return os.access(self.folder / "bin" / name, os.X_OK)


def explain_pip(log: str, wheels: str) -> str:
    """Return why pip failed, and what to do about it."""
    lines = [line.removeprefix("ERROR: ") for line in log.splitlines() if line.startswith("ERROR: ")]
    reason = "\n".join(lines[:3]) or "pip failed."
    if "No space left on device" in log:
        return f"{reason}\nThe disk is full. Set TMPDIR to another folder for temporary files."
    if "No matching distribution found" in log and wheels:
        return (
            f"{reason}\n{wheels} does not contain it. Refill it on a machine that reaches the package index: "
            "`make wheels PYTHON_VERSION=<this Python's, such as 3.12>`."
        )
    if "No matching distribution found" in log or "NewConnectionError" in log or "ConnectTimeout" in log:
        return (
            f"{reason}\nCheck that the package index is reachable and has that version for this Python. "
            "Without a network: `make wheels` elsewhere, then `make setup WHEELS=<folder>`."
        )
    return reason


def create(folder: Path, base_python: str, *, system_site: bool) -> bool:
    """Create the virtual environment unless a suitable one exists; return whether it was created.

    Args:
        folder: The environment's folder.
        base_python: The interpreter to create it from.
        system_site: Whether it sees that interpreter's packages.

    Raises:
        InputError: The folder holds something else.
        SetupError: The environment could not be created.
    """
    if folder.exists() and fits(folder, system_site=system_site):
        return False
    if folder.exists() and any(folder.iterdir()) and not (folder / "pyvenv.cfg").exists():
        raise InputError(f"{folder} is not a virtual environment. Move it away and try again.")
    command = [
        base_python,
        "-m",
        "venv",
        "--clear",
        *(["--system-site-packages"] if system_site else []),
        str(folder),
    ]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        raise SetupError(f"`{' '.join(command)}` failed:\n{(made.stdout + made.stderr).strip()}")
    return True


def fits(folder: Path, *, system_site: bool) -> bool:
    """Return whether a virtual environment works and has the wanted access to system packages."""
    try:
        configuration = (folder / "pyvenv.cfg").read_text(encoding="utf-8")
    except OSError:
        return False
    sees = re.search(r"^include-system-site-packages\s*=\s*true", configuration, re.MULTILINE) is not None
    if sees != system_site:
        return False
    try:
        works = subprocess.run(
            [folder / "bin" / "python", "-m", "pip", "--version"], capture_output=True, check=False
        )
    except OSError:
        return False
    return works.returncode == 0


def expose_torch(environment: Environment, torch: TorchFacts) -> None:
    """Make a torch visible that `--system-site-packages` does not show.

    That option shows the packages of the base interpreter. If torch is in the virtual environment that this
    one was created from, or on PYTHONPATH, a `.pth` file adds it. The environment's own packages come first.
    """
    packages = str(Path(torch.folder).parent)
    line = f"import site; site.addsitedir({packages!r})\n"
    (environment.packages / "hybrid-trainer-system-torch.pth").write_text(line, encoding="utf-8")


def remove(folder: Path) -> None:
    """Delete a virtual environment."""
    shutil.rmtree(folder, ignore_errors=True)
