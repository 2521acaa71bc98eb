"""Starts a command from a run's folder: its configuration, with the command line's overrides.

Only what says what was trained is taken. Where it was trained (the layout, threads, devices) and how (the
optimizer, recomputation) are this launch's own: they do not change what the model computes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from trainer.config.registry import GROUPS
from trainer.config.schema import flat
from trainer.errors import UserError

FILE = "config.yaml"
TAKEN = ("model", "data", "loss", "metrics", "precision", "batch", "train", "eval", "generate")
_SOURCES = ("run.dir", "checkpoint.resume")  # keys that name a run; the first that is given counts
_OF_RUN = 3  # a checkpoint is RUN/checkpoints/step-00000100


@dataclass(frozen=True)
class Saved:
    """The configuration of a run, as far as it is taken.

    Attributes:
        values: The values by section.
        given: What the command line gives itself, by key.
    """

    values: dict[str, Any]
    given: dict[str, Any]

    @classmethod
    def of(cls, words: Sequence[str]) -> "Saved | None":
        """Return the configuration of the run that a command line names; None if it names none.

        Args:
            words: The command line.

        Raises:
            UserError: The run has no configuration, or it cannot be read.
        """
        given = _overrides(words)
        for key in _SOURCES:
            if given.get(key) not in (None, "auto", "none"):
                return cls(_read(str(given[key]), key), given)
        return None

    def choices(self) -> list[str]:
        """Return the overrides that choose what the run chose, for the front of the command line."""
        groups = [
            f"{group}={self.values[group]['name']}"
            for group in GROUPS
            if group in self.values and group not in self.given
        ]
        return groups if "experiment" in self.given else ["experiment=none", *groups]

    def put_into(self, node: DictConfig) -> None:
        """Give a composed configuration the run's values, except for those of the command line."""
        for section, values in self.values.items():
            if section in self.given and (section not in GROUPS or self.given[section] != values["name"]):
                continue
            for key, value in flat({section: values}).items():
                if not any(_concerns(other, key) for other in self.given):
                    OmegaConf.update(node, key, value, force_add=True)


def with_choices(words: Sequence[str], saved: Saved) -> list[str]:
    """Return a command line with a run's choices before its first override, and after its options."""
    first = next((i for i, word in enumerate(words) if "=" in word and not word.startswith("-")), len(words))
    return [*words[:first], *saved.choices(), *words[first:]]


def _concerns(given: str, key: str) -> bool:
    """Return whether an override of the command line replaces a saved value, all of it or a part."""
    return given not in GROUPS and (f"{key}.".startswith(f"{given}.") or given.startswith(f"{key}."))


def _overrides(words: Sequence[str]) -> dict[str, Any]:
    """Return the values of a command line's overrides; what Hydra cannot read is left to its own message."""
    parser = OverridesParser.create()
    given: dict[str, Any] = {}
    for word in words:
        if "=" in word and not word.startswith("-"):
            try:
                override = parser.parse_override(word)
            except Exception:
                continue
            given[override.key_or_group] = override.value()
    return given


def _read(path: str, key: str) -> dict[str, Any]:
    folders = [Path(path), *list(Path(path).absolute().parents)[: _OF_RUN - 1]]
    file = next((folder / FILE for folder in folders if (folder / FILE).is_file()), None)
    if file is None:
        raise UserError(f"{key}={path} has no {FILE}: give the folder of a run, or of one of its checkpoints")
    try:
        values = OmegaConf.to_container(OmegaConf.load(file))
    except Exception as error:
        raise UserError(f"{file}, the run's configuration, cannot be read: {error}") from error
    if not isinstance(values, dict) or any(not _named(values.get(group)) for group in ("model", "data")):
        raise UserError(f"{file} is not the configuration of a run: it has no model, or no data")
    return {section: values[section] for section in TAKEN if section in values}


def _named(section: Any) -> bool:
    return isinstance(section, dict) and isinstance(section.get("name"), str)
