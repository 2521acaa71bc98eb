"""The record of what the last set-up installed, and whether it is still valid: read in milliseconds."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from launch.install import runner_patch
from launch.install.cache import RECIPE
from launch.install.settings import HOROVOD_VERSION, OPENMPI_VERSION, Choices
from launch.install.torch_facts import read_version

VERSIONS = f"horovod {HOROVOD_VERSION} {RECIPE} {runner_patch.recipe()}, openmpi {OPENMPI_VERSION}"


@dataclass(frozen=True)
class Stamp:
    """The record of a set-up: written with the choices alone when it starts, and complete when it ends.

    Attributes:
        choices: The user's choices by name.
        project: A digest of pyproject.toml, because it has the dependencies.
        versions: The versions of Horovod, its build and Open MPI; empty until the set-up ends.
        torch_version: The version of torch, with its local part.
        torch_folder: The folder of the torch package.
        base_python: The interpreter that .venv was created from.
    """

    choices: dict[str, str] = field(default_factory=dict)
    project: str = ""
    versions: str = ""
    torch_version: str = ""
    torch_folder: str = ""
    base_python: str = ""


def read(venv: Path) -> Stamp:
    """Return the stamp of an environment, an empty one if there is none."""
    try:
        data = json.loads((venv / "set-up.json").read_text(encoding="utf-8"))
        return Stamp(**data)
    except (OSError, ValueError, TypeError):
        return Stamp()


def write(venv: Path, stamp: Stamp) -> None:
    """Write the stamp atomically."""
    partial = venv / "set-up.json.partial"
    partial.write_text(json.dumps(asdict(stamp), indent=2) + "\n", encoding="utf-8")
    partial.replace(venv / "set-up.json")


def project_digest(root: Path) -> str:
    """Return a digest of what the project depends on."""
    return hashlib.sha256((root / "pyproject.toml").read_bytes()).hexdigest()[:16]


def why_stale(stamp: Stamp, root: Path, venv: Path, choices: Choices) -> str:
    """Return why the set-up must run, or an empty string if there is nothing to do."""
    if not stamp.choices or not (venv / "bin" / "python").exists():
        return "not set up yet"
    if not stamp.versions:
        return "the last set-up did not finish"
    for name, value in choices.as_dict().items():
        if stamp.choices.get(name) != value:
            return f"{name.upper()} was '{stamp.choices.get(name, '')}', is now '{value}'"
    if stamp.versions != VERSIONS or stamp.project != project_digest(root):
        return "the project's dependencies changed"
    return _why_broken(stamp, venv)


def _why_broken(stamp: Stamp, venv: Path) -> str:
    """Return what has changed in the environment since, such as by a `pip install` of another torch."""
    installed = read_version(Path(stamp.torch_folder))
    if installed != stamp.torch_version:
        return f"torch was {stamp.torch_version}, is now {installed or 'gone'}"
    built_for = horovod_torch_version(venv)
    if built_for != installed:
        return f"Horovod was built for torch {built_for}, not {installed}" if built_for else "Horovod is gone"
    return ""


def horovod_torch_version(venv: Path) -> str:
    """Return the torch version that the installed Horovod was built for; its build records it in a file."""
    for file in venv.glob("lib/python3*/site-packages/horovod/metadata.json"):
        try:
            return str(json.loads(file.read_text(encoding="utf-8")).get("pytorch", ""))
        except ValueError:
            return ""
    return ""
