"""Digests of a few steps in a file: to compare layouts where no process can hold the whole model."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trainer.config.schema import Config, flat
from trainer.errors import UserError

# What may differ between two layouts that must train alike; everything else in the configuration must not.
_MAY_DIFFER = (
    "layout.",
    "schedule",
    "threads",
    "verify.",
    "run.",
    "progress",
    "checkpoint.",
    "eval.",
    "generate.",
    "optimizer.sharded",
)


@dataclass(frozen=True)
class StepDigests:
    """A step: its loss and norm, and the SHA-256 of everything, by "kind layer/name"."""

    step: int
    loss: float
    grad_norm: float
    digests: dict[str, str]


@dataclass
class DigestFile:
    """What a launch leaves behind for another to be compared with.

    Attributes:
        settings: The configuration, so far as the training hangs on it.
        replicas: How many there were.
        threads: How many each rank computed with.
        steps: The steps.
    """

    settings: dict[str, str]
    replicas: int
    threads: int
    steps: list[StepDigests] = field(default_factory=list)

    @classmethod
    def of(cls, config: Config, replicas: int, threads: int) -> "DigestFile":
        """Return one without steps for a launch."""
        settings = {key: str(value) for key, value in flat(config).items() if not key.startswith(_MAY_DIFFER)}
        return cls(settings, replicas, threads)

    @classmethod
    def read(cls, path: Path) -> "DigestFile":
        """Return what a file says.

        Raises:
            UserError: It cannot be read, or is no such file.
        """
        try:
            content: dict[str, Any] = json.loads(path.read_text())
            steps = [StepDigests(**step) for step in content.pop("steps")]
            return cls(**content, steps=steps)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"verify.against={path} is no file that verify.save=... wrote: {error}"
            ) from error

    def write(self, path: Path) -> None:
        """Write the file.

        Raises:
            UserError: It cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(asdict(self), indent=1) + "\n")
        except OSError as error:
            raise UserError(f"verify.save={path} cannot be written: {error}") from error

    def check_comparable(self, other: "DigestFile", steps: int, path: Path) -> None:
        """Raise a UserError unless the other launch trained the same, with as many threads and replicas.

        Args:
            other: The other launch's.
            steps: How many steps are going to be compared.
            path: Where the other's file is.
        """
        ours = {**self.settings, "threads": str(self.threads), "replicas": str(self.replicas)}
        theirs = {**other.settings, "threads": str(other.threads), "replicas": str(other.replicas)}
        if len(other.steps) < steps:
            raise UserError(
                f"verify.against={path} has {len(other.steps)} steps, but here are verify.steps={steps}"
            )
        for key in ours.keys() | theirs.keys():
            if ours.get(key) != theirs.get(key):
                raise UserError(
                    f"verify.against={path} was made with {key}={theirs.get(key)}, but here it is "
                    f"{ours.get(key)}: bits are equal across stages and schedules, all else being the same"
                )
