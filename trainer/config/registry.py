"""The choices of the configuration's groups: models, data, optimizers, updates. Each is declared once.

    @choice("model", build="my_package.bert:bert")
    @dataclass
    class BertConfig(ModelConfig):
        name: str = "bert"
        blocks: int = positive(12, "transformer blocks")

The command line, the messages, the documentation and the builders all read this table. A builder is named
by its import path and imported where it is used: composing a configuration imports neither torch nor MPI.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

from trainer.config.fields import undescribed
from trainer.errors import UserError

T = TypeVar("T")

GROUPS = ("model", "data", "optimizer", "update")


@dataclass(frozen=True)
class Choice:
    """One choice of a group.

    Attributes:
        group: The group, such as "model".
        name: What the command line calls it, as in `model=gpt`: the default of its class's `name`.
        schema: The class of its configuration.
        build: The import path of its builder; see `choice`.
        prepare: The import path of what one rank of each node calls first, or None.
        example: The import path of what stands for the data where only shapes matter, or None.
    """

    group: str
    name: str
    schema: type
    build: str
    prepare: str | None = None
    example: str | None = None


_CHOICES: dict[str, dict[str, Choice]] = {group: {} for group in GROUPS}


def choice(
    group: str, *, build: str, prepare: str | None = None, example: str | None = None
) -> Callable[[type[T]], type[T]]:
    """Declare a dataclass to be the configuration of a choice; its `name` has the choice's name as default.

    Args:
        group: One of `GROUPS`.
        build: The import path, "package.module:callable", of what makes the thing from its configuration:
            a model by `build(config, data)`, data by `build(config)`, an optimizer by `build(config, groups)`
            from its parameter groups, a replication strategy by `build(config, parts)`.
        prepare: For data: the import path of what one rank of each node calls, as `prepare(config)`, before
            any rank calls `build`.
        example: For data: the import path of what `trainer.plan` calls, as `example(config, vocabulary)`, in
            place of `build`: it returns a few samples of the right shapes, and reads no files.

    Raises:
        TypeError: A field has no description, or another class has declared a choice of this name.
    """

    def declare(schema: type[T]) -> type[T]:
        if missing := undescribed(schema):
            raise TypeError(
                f"{schema.__qualname__}.{missing[0]} has no description: declare it with a function of "
                "trainer.config.fields, such as positive(8, 'transformer blocks')"
            )
        name: str = getattr(schema, "name")  # noqa: B009  (mypy does not know that T has one)
        known = _CHOICES[group].get(name)
        if known is None:
            _CHOICES[group][name] = Choice(group, name, schema, build, prepare, example)
        elif known.schema.__qualname__ != schema.__qualname__:  # else a script that is imported once more
            raise TypeError(f"{group}={name} is declared already, by {known.schema.__qualname__}")
        return schema

    return declare


def choices(group: str) -> Mapping[str, Choice]:
    """Return the choices of a group by name, in the order of their declarations."""
    return MappingProxyType(_CHOICES[group])


def chosen(group: str, config: Any) -> Choice:
    """Return the choice that a configuration belongs to.

    Raises:
        UserError: No choice of the group has a configuration of this class.
    """
    for known in _CHOICES[group].values():
        if type(config) is known.schema:
            return known
    raise UserError(f"{group}.name={config.name} is none of {', '.join(_CHOICES[group])}")


def import_builder(path: str) -> Callable[..., Any]:
    """Return what the import path of a declared choice names."""
    module, _, name = path.partition(":")
    builder: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return builder
