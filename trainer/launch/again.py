"""What follows a run that stopped early with everything saved: Slurm starts it again, or this process does.

Only progress is worth another start: a run that comes back to the same step is given up after three starts.
"""

import json
import re
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

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
        record: A file that keeps the count, where every start is by another process.
    """

    def __init__(self, run_dir: Path, record: Path | None = None) -> None:
        self._run_dir = run_dir
        self._record = record
        self._step, self._number = self._recorded() or (newest_step(run_dir), 1)

    def may_start_again(self) -> bool:
        """Note that a start has ended; return whether another is worth it."""
        step = newest_step(self._run_dir)
        self._number = self._number + 1 if step == self._step else 1
        self._step = step
        if self._record is not None:
            with suppress(OSError):  # a full disk: another start costs less than a stop
                self._record.parent.mkdir(parents=True, exist_ok=True)
                self._record.write_text(json.dumps([self._step, self._number]))
        return self._number <= MOST_STARTS

    def _recorded(self) -> tuple[int, int] | None:
        """Return the step and the number of starts that an earlier process has noted."""
        if self._record is None:
            return None
        try:
            step, number = json.loads(self._record.read_text())
            return int(step), int(number)
        except (OSError, ValueError, TypeError):
            return None


def record_of(run_dir: Path, job: str) -> Path:
    """Return where the starts of a Slurm job are noted: beside the run's folder, which may not exist yet."""
    return run_dir.parent / f".starts-{job}"


def requeue(job: str) -> str:
    """Have Slurm start a job again, which ends it, unless Slurm does so already or the user has cancelled it.

    Args:
        job: Its number, such as "17", or "17_3" of a task of an array.

    Returns:
        A line for the user.
    """
    told = _scontrol("show", "job", "-o", job)
    facts = dict(re.findall(r"(\w+)=(\S+)", told.out))
    state = facts.get("JobState", "")
    if state == "PENDING":  # it was pre-empted
        return f"Slurm starts job {job} again"
    if state in ("CANCELLED", "COMPLETING") and not _out_of_time(facts) and not _pre_empted(facts):
        return f"job {job} was cancelled: it is not started again; everything is saved"
    asked = _scontrol("requeue", job)
    if asked.complaint:
        return f"scontrol requeue {job}: {asked.complaint}; everything is saved, submit the job again"
    return f"Slurm starts job {job} again"


@dataclass(frozen=True)
class _Told:
    out: str
    complaint: str = ""


def _scontrol(*arguments: str) -> _Told:
    try:
        ran = subprocess.run(
            ["scontrol", *arguments], capture_output=True, text=True, timeout=_LIMIT, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return _Told("", str(error))
    if ran.returncode:
        return _Told(ran.stdout, (ran.stderr.strip().splitlines() or ["failed"])[-1])
    return _Told(ran.stdout)


def _out_of_time(facts: Mapping[str, str]) -> bool:
    """Return whether a job has run for as long as it may."""
    if facts.get("Reason") == "TimeLimit":
        return True
    ran, limit = _seconds(facts.get("RunTime", "")), _seconds(facts.get("TimeLimit", ""))
    return ran is not None and limit is not None and ran >= limit


def _pre_empted(facts: Mapping[str, str]) -> bool:
    return facts.get("PreemptTime", "None") not in ("None", "Unknown")


def _seconds(text: str) -> int | None:
    """Return the seconds of a time such as 1-02:03:04."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text)
    if found is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
