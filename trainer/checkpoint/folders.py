"""The folder of a run's checkpoints: which there are, which is the newest, which to remove.

A checkpoint is written as `step-00000100.partial`, and renamed when it is complete. A folder that has its
final name but no manifest has lost it: it is damaged.
"""

import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from trainer.errors import UserError

PARTIAL = ".partial"
_NAME = re.compile(r"step-(\d+)")


def checkpoint_folder(folder: Path, step: int) -> Path:
    """Return the path of a step's checkpoint in a folder of checkpoints."""
    return folder / f"step-{step:08d}"


def all_checkpoints(folder: Path) -> list[Path]:
    """Return the folders with the name of a checkpoint, damaged ones too, oldest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]
    return sorted(found, key=_step)


def candidates(resume: str, folder: Path) -> Sequence[Path]:
    """Return the checkpoints that a run may start from, the best first; they may be damaged.

    Args:
        resume: "auto" (those in the folder), "none", or the path of a checkpoint or a folder of them.
        folder: The run's folder of checkpoints.

    Raises:
        UserError: A path is given, but there is no complete checkpoint.
    """
    if resume == "none":
        return []
    return all_checkpoints(folder)[::-1] if resume == "auto" else [checkpoint_at(resume, "checkpoint.resume")]


def find_checkpoint(resume: str, folder: Path) -> Path | None:
    """Return the newest complete checkpoint that a run may start from, or None.

    Args:
        resume: As of `candidates`.
        folder: The run's folder of checkpoints.

    Raises:
        UserError: A path is given, but there is no complete checkpoint.
    """
    if resume == "none":
        return None
    return _newest(folder) if resume == "auto" else checkpoint_at(resume, "checkpoint.resume")


def checkpoint_at(path: str, key: str) -> Path:
    """Return the checkpoint at a path, or the newest in a folder of checkpoints or of a run.

    Args:
        path: The path.
        key: The dotted key that it comes from, for messages.

    Raises:
        UserError: There is no complete checkpoint.
    """
    try:
        found = _newest(Path(path))
    except (OSError, ValueError) as error:  # no permission, a name too long, a null character
        raise UserError(f"{key}={path} cannot be read: {error}") from error
    if found is None:
        raise UserError(
            f"{key}={path} is not a checkpoint: it has no manifest.json; "
            "give the folder of a checkpoint (.../checkpoints/step-00000100) or of a run"
        )
    return found


def remove_old(folder: Path, keep: int, newest: int | None = None) -> None:
    """Remove all but the newest `keep` checkpoints, and what incomplete saves have left; 0 keeps all.

    Args:
        folder: The run's folder of checkpoints.
        keep: How many to keep.
        newest: The step of the last save; later ones, which a run has passed over, do not count and stay.
    """
    complete = [path for path in _complete(folder) if newest is None or _step(path) <= newest]
    if keep > 0:
        for old in complete[:-keep]:
            with suppress(OSError):  # the new one is saved
                remove(old)
    remove_partial(folder)


def remove_partial(folder: Path) -> None:
    """Remove what incomplete saves have left."""
    for left in folder.glob(f"step-*{PARTIAL}"):
        shutil.rmtree(left, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove a checkpoint; if that is interrupted, what is left does not look like one."""
    if path.exists():
        aside = path.with_name(f"{path.name}.old{PARTIAL}")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


def _step(path: Path) -> int:
    return int(path.name.partition("-")[2])


def _newest(path: Path) -> Path | None:
    """Return the checkpoint as `checkpoint_at` does, or None."""
    if (path / "manifest.json").is_file():
        return path
    found = _complete(path) or _complete(path / "checkpoints")
    return found[-1] if found else None


def _complete(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder that have a manifest, oldest first."""
    return [path for path in all_checkpoints(folder) if (path / "manifest.json").is_file()]
