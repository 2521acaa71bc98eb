"""A run's folder: one per run, whatever the number of ranks.

config.yaml       the configuration, resolved
metrics.jsonl     one object a step, and one a validation
superseded.jsonl  what metrics.jsonl held of steps that a resumed run did again
timeline.json     one usual step of the first replica, measured and predicted, for `trainer.report`
schedule.txt      the step of the first replica, drawn as predicted
trace.json        with run.trace: every action of every rank, for ui.perfetto.dev
logs/rank0.log    what each rank logs
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
    """The folder of a run. Rank 0 makes it and writes the metrics; every rank logs into it.

    Raises:
        UserError: It cannot be made or written.
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
        (self.path / "logs").mkdir(parents=True, exist_ok=True)  # another node may have a disk of its own
        log_to(self.path / "logs" / f"rank{world.rank}.log")

    @property
    def checkpoints(self) -> Path:
        """Return the folder of the run's checkpoints."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """Return the file of the run's numbers."""
        return self.path / "metrics.jsonl"

    def write_text(self, name: str, text: str) -> None:
        """Write a small file of the run, on rank 0."""
        if self._writes:
            (self.path / name).write_text(text + "\n")

    def forget_after(self, step: int) -> None:
        """Move the metrics of steps after `step`, which a resumed run does again, to a file of their own."""
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
        """Append an object to the metrics, on rank 0. Floats are written so that they read back the same."""
        if self._writes:
            with self.metrics.open("a") as file:
                file.write(json.dumps(values) + "\n")


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line cut off by a crash


def log_to(path: Path) -> None:
    """Send this process's log to a file, instead of the one before."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, logging.FileHandler):
            root.removeHandler(handler)
            handler.close()
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root.addHandler(handler)
    root.setLevel(logging.INFO)
