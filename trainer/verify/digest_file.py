"""A file with the digests of a few steps, to compare layouts of a model that fits no single process."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trainer.config.schema import Config, flat
from trainer.errors import UserError

# Keys that may differ between two launches that must train alike; all others must be equal.
_MAY_DIFFER = (
    "layout.",
    "memory.",
    "plan.",
    "logger",
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
    """A step: its loss, its gradient norm, and the SHA-256 of every value, by "kind layer/name"."""

    step: int
    loss: float
    grad_norm: float
    digests: dict[str, str]


@dataclass
class DigestFile:
    """What a launch saves so that another launch can be compared with it.

    Attributes:
        settings: The part of the configuration that the training depends on.
        replicas: The number of replicas.
        threads: The number of threads of each rank.
        steps: The steps.
    """

    settings: dict[str, str]
    replicas: int
    threads: int
    steps: list[StepDigests] = field(default_factory=list)

    @classmethod
    def of(cls, config: Config, replicas: int, threads: int) -> "DigestFile":
        """Return the file of a launch, still without steps."""
        settings = {key: str(value) for key, value in flat(config).items() if not key.startswith(_MAY_DIFFER)}
        return cls(settings, replicas, threads)

    @classmethod
    def read(cls, path: Path) -> "DigestFile":
        """Read a file.

        Raises:
            UserError: It cannot be read, or `verify.save` did not write it.
        """
        try:
            content: dict[str, Any] = json.loads(path.read_text())
            steps = [StepDigests(**step) for step in content.pop("steps")]
            return cls(**content, steps=steps)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"verify.against={path} is not a file written by verify.save=...: {error}"
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
        """Check that the other launch had the same settings, threads and replicas, and enough steps.

        Args:
            other: The other launch's file.
            steps: The number of steps to compare.
            path: The path of the other launch's file.

        Raises:
            UserError: It cannot be compared with this launch.
        """
        ours = {**self.settings, "threads": str(self.threads), "replicas": str(self.replicas)}
        theirs = {**other.settings, "threads": str(other.threads), "replicas": str(other.replicas)}
        if len(other.steps) < steps:
            raise UserError(
                f"verify.against={path} has {len(other.steps)} steps, fewer than verify.steps={steps}: lower "
                "verify.steps, or save more steps"
            )
        for key in sorted(ours.keys() | theirs.keys()):  # every rank names the same
            if ours.get(key) != theirs.get(key):
                raise UserError(
                    f"verify.against={path} was saved with {key}={theirs.get(key)}, but here it is "
                    f"{ours.get(key)}: bits are equal across stages, schedules and recomputation only "
                    "if all else is equal"
                )
