"""Finished runs, for inspection."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.launch import Result

# Everything that could differ in another layout, in one run: dropout, a tied head, an odd number of layers,
# a smaller last micro-batch, clipping, AdamW, a changing learning rate.
GPT = [
    "model.blocks=3",
    "batch.global_size=15",
    "optimizer.clip=1.0",
    "train.steps=6",
    "eval.every=3",
    "checkpoint.every=3",
    "checkpoint.keep=0",
    "generate.tokens=12",
]


@dataclass(frozen=True)
class Finished:
    """A successful run.

    Attributes:
        result: The launch's outcome.
        folder: The run's folder.
    """

    result: Result
    folder: Path

    @property
    def objects(self) -> list[dict[str, Any]]:
        """Return all records of the metrics."""
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    @property
    def steps(self) -> list[dict[str, Any]]:
        """Return the metrics of the steps."""
        return [item for item in self.objects if "loss" in item]

    @property
    def losses(self) -> list[float]:
        """Return the loss of every step."""
        return [step["loss"] for step in self.steps]

    @property
    def grad_norms(self) -> list[float]:
        """Return the gradient norm of every step."""
        return [step["grad_norm"] for step in self.steps]

    @property
    def validation(self) -> list[float]:
        """Return the losses on the validation samples."""
        return [item["val_loss"] for item in self.objects if "val_loss" in item]

    @property
    def written(self) -> str:
        """Return the text that the model wrote at the end."""
        return self.result.out.partition("the model writes:\n")[2]

    @property
    def checkpoints(self) -> Path:
        """Return the folder of the checkpoints."""
        return self.folder / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        """Return the folder of a checkpoint."""
        return self.checkpoints / f"step-{step:08d}"

    def layer_files(self, step: int) -> dict[str, bytes]:
        """Return the layers' files in a checkpoint."""
        return {path.name: path.read_bytes() for path in (self.checkpoint(step) / "layers").iterdir()}


# Functions that run a command on some ranks with overrides: `Ranks` with any outcome; `Trained` must succeed,
# and runs once a session.
Ranks = Callable[..., Result]
Trained = Callable[..., Finished]
