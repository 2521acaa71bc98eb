"""What follows a run that stopped early with everything saved: Slurm starts it again, or this process does.

Only progress is worth another start: a run that comes back to the same step is given up after three starts.
"""

import re
import subprocess
from pathlib import Path

from trainer.errors import EXIT_SAVED

MOST_STARTS = 3  # at the same step
_CHECKPOINT = re.compile(r"step-(\d+)")
_LIMIT = 30.0  # seconds


def newest_step(run_dir: Path) -> int:
    """Return the step of a run's newest checkpoint, or -1 if it has none."""
    try:
        names = [entry.name for entry in (run_dir / "checkpoints").iterdir()]
    except OSError:
        return -1
    steps = [int(found[1]) for name in names if (found := _CHECKPOINT.fullmatch(name)) is not None]
    return max(steps, default=-1)


class Starts:
    """Counts the starts of a run.

    Args:
        run_dir: Its folder.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._step = newest_step(run_dir)
        self._number = 1

    def may_start_again(self) -> bool:
        """Note that a start has ended; return whether another is worth it."""
        step = newest_step(self._run_dir)
        self._number = self._number + 1 if step == self._step else 1
        self._step = step
        return self._number <= MOST_STARTS


def requeue(job: str) -> tuple[int, str]:
    """Ask Slurm to start a job again, which ends it.

    Args:
        job: Its number, such as "17", or "17_3" of a task of an array.

    Returns:
        The exit code, and a line for the user.
    """
    try:
        ran = subprocess.run(
            ["scontrol", "requeue", job], capture_output=True, text=True, timeout=_LIMIT, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return EXIT_SAVED, f"scontrol requeue {job}: {error}; everything is saved, submit the job again"
    if ran.returncode:
        complaint = (ran.stderr.strip().splitlines() or ["failed"])[-1]
        return EXIT_SAVED, f"scontrol requeue {job}: {complaint}; everything is saved, submit the job again"
    return EXIT_SAVED, f"Slurm starts job {job} again"
