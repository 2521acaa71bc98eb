"""A run's folder: one for each run, for any number of ranks.

config.yaml       the resolved configuration
metrics.jsonl     one object for each step, and one for each validation
superseded.jsonl  lines of metrics.jsonl for steps that a resumed run repeated
lock.json         while the run lives: which process it is
timeline.json     a typical step of the first replica, measured and predicted, for `trainer.report`
schedule.txt      the predicted step of the first replica, drawn
trace.json        with run.trace: every action of every rank, for ui.perfetto.dev
logs/rank0.log    the log of each rank
checkpoints/      see trainer/checkpoint/checkpoint.py
"""

import json
import logging
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from trainer.checkpoint.folders import checkpoint_folder
from trainer.config.run_dir import resolve_run_dir
from trainer.config.schema import Config
from trainer.distributed.world import World
from trainer.errors import UserError
from trainer.metrics.best_effort import LogFile, append, best_effort, finite, replace
from trainer.metrics.lock import RunLock


class RunFolder:
    """The folder of a run. Rank 0 creates it, locks it and writes the metrics; every rank logs into it.

    After the start, a file that cannot be written does not end the run: see `trainer.metrics.best_effort`.

    Raises:
        UserError: The folder cannot be created or written, or another live run has it.
    """

    def __init__(self, config: Config, world: World) -> None:
        self.path = resolve_run_dir(config.run.dir, world)
        config.run.dir = str(self.path)
        self._writes = world.rank == 0
        self._lock: RunLock | None = None
        if self._writes:
            try:
                (self.path / "logs").mkdir(parents=True, exist_ok=True)
                self._lock = RunLock(self.path)
                (self.path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
            except OSError as error:
                raise UserError(f"run.dir={config.run.dir} cannot be written: {error}") from error
        world.barrier()
        with best_effort(self.path / "logs"):
            (self.path / "logs").mkdir(parents=True, exist_ok=True)  # nodes may not share a disk
            log_to(self.path / "logs" / f"rank{world.rank}.log")

    def close(self) -> None:
        """Leave the folder to other runs."""
        if self._lock is not None:
            self._lock.release()

    @property
    def checkpoints(self) -> Path:
        """Return the folder of the run's checkpoints."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """Return the file of the run's metrics."""
        return self.path / "metrics.jsonl"

    def write_text(self, name: str, text: str) -> None:
        """Write a small file into the folder, on rank 0."""
        if self._writes:
            replace(self.path / name, text + "\n")

    def append_text(self, name: str, text: str) -> None:
        """Append to a file in the folder, on rank 0."""
        if self._writes:
            append(self.path / name, text)

    def forget_after(self, step: int) -> None:
        """Move the metrics of steps after `step`, which a resumed run repeats, to a separate file."""
        if self._writes and self.metrics.exists():
            with best_effort(self.metrics):
                self._forget_after(step)

    def _forget_after(self, step: int) -> None:
        lines = [line + b"\n" for line in self.metrics.read_bytes().split(b"\n") if line]
        superseded = [line for line in lines if _is_after(line, step)]
        if not superseded:
            return
        with (self.path / "superseded.jsonl").open("ab") as file:
            file.writelines(superseded)
        rest = self.metrics.with_suffix(".partial")
        rest.write_bytes(b"".join(line for line in lines if not _is_after(line, step)))
        rest.replace(self.metrics)

    def checkpoint(self, step: int) -> Path:
        """Return the folder of a step's checkpoint."""
        return checkpoint_folder(self.checkpoints, step)

    def write(self, **values: Any) -> None:
        """Append an object to the metrics, on rank 0. Finite floats read back with the same bits.

        Strict JSON has no other floats: null stands for them.
        """
        values = {name: finite(value) for name, value in values.items()}
        self.append_text(self.metrics.name, json.dumps(values, allow_nan=False) + "\n")


def _is_after(line: bytes, step: int) -> bool:
    """Return whether a line is of a later step, or damaged, such as one that a crash cut off."""
    try:
        return not float(json.loads(line)["step"]) <= step
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return True


def log_to(path: Path) -> None:
    """Send this process's log to a file, instead of the previous one."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, logging.FileHandler):
            root.removeHandler(handler)
            handler.close()
    handler = LogFile(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root.addHandler(handler)
    root.setLevel(logging.INFO)
