"""The check of every value, before torch and MPI are imported; every error names the dotted key."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from trainer.config.fields import Spec, spec_of
from trainer.config.schema import Config
from trainer.errors import UserError


def check(config: Config) -> None:
    """Check every value by itself; what depends on the world, the data or the model is checked with them.

    Raises:
        UserError: A value is out of its range, or not one of its choices.
    """
    check_part(config)
    if config.train.steps is None and config.train.epochs is None:
        raise UserError("train.steps and train.epochs are both null: give one of them")
    if config.memory.limit is not None and config.memory.recompute != "none":
        raise UserError(
            f"memory.limit={config.memory.limit} chooses what is recomputed, but memory.recompute="
            f"{config.memory.recompute} is given too: give one of them"
        )


def check_part(part: Any, prefix: str = "") -> None:
    """Check a part of the configuration against what its fields state.

    Args:
        part: The part, an instance of a dataclass.
        prefix: What its keys begin with, such as "model.".

    Raises:
        UserError: A value is out of its range, or not one of its choices.
    """
    for key, value, spec in _stated(part, prefix):
        if (complaint := spec.complaint(key, value)) is not None:
            raise UserError(complaint)


def _stated(part: Any, prefix: str) -> Iterator[tuple[str, Any, Spec]]:
    """Yield the dotted key, the value and the statement of every field, also of the parts in lists."""
    for field in fields(part):
        key, value = f"{prefix}{field.name}", getattr(part, field.name)
        spec = spec_of(type(part), field.name)
        if spec is not None:
            yield key, value, spec
        entries = enumerate(value) if isinstance(value, list) else ()
        nested = [(f"{key}.", value), *((f"{key}.{number}.", entry) for number, entry in entries)]
        for inner, candidate in nested:
            if is_dataclass(candidate):
                yield from _stated(candidate, inner)
