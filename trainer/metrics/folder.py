"""A run's folder: one for each run, for any number of ranks.

config.yaml       the resolved configuration
metrics.jsonl     one object for each step, and one for each validation
superseded.jsonl  lines of metrics.jsonl for steps that a resumed run repeated
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

from trainer.checkpoint.checkpoint import checkpoint_folder
from trainer.config.run_dir import resolve_run_dir
from trainer.config.schema import Config
from trainer.distributed.world import World
from trainer.errors import UserError


class RunFolder:
    """The folder of a run. Rank 0 creates it and writes the metrics; every rank logs into it.

    Raises:
        UserError: The folder cannot be created or written.
    """

    def __init__(self, config: Config, world: World) -> None:
        self.path = resolve_run_dir(config.run.dir, world)
        config.run.dir = str(self.path)
        self._writes = world.rank == 0
        if self._writes:
            try:
                (self.path / "logs").mkdir(parents=True, exist_ok=True)
                (self.path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
            except OSError as error:
                raise UserError(f"run.dir={config.run.dir} cannot be written: {error}") from error
        world.barrier()
        (self.path / "logs").mkdir(parents=True, exist_ok=True)  # nodes may not share a disk
        log_to(self.path / "logs" / f"rank{world.rank}.log")

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
            (self.path / name).write_text(text + "\n")

    def forget_after(self, step: int) -> None:
        """Move the metrics of steps after `step`, which a resumed run repeats, to a separate file."""
        if not self._writes or not self.metrics.exists():
            return
        lines = [f"{line}\n" for line in self.metrics.read_text().splitlines()]
        superseded = [line for line in lines if _step(line) > step]
        if not superseded:
            return
        with (self.path / "superseded.jsonl").open("a") as file:
            file.writelines(superseded)
        rest = self.metrics.with_suffix(".partial")
        rest.write_text("".join(line for line in lines if _step(line) <= step))
        rest.replace(self.metrics)

    def checkpoint(self, step: int) -> Path:
        """Return the folder of a step's checkpoint."""
        return checkpoint_folder(self.checkpoints, step)

    def write(self, **values: Any) -> None:
        """Append an object to the metrics, on rank 0. Floats read back with the same bits."""
        if self._writes:
            with self.metrics.open("a") as file:
                file.write(json.dumps(values) + "\n")


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line that a crash cut off


def log_to(path: Path) -> None:
    """Send this process's log to a file, instead of the previous one."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, logging.FileHandler):
            root.removeHandler(handler)
            handler.close()
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root.addHandler(handler)
    root.setLevel(logging.INFO)
