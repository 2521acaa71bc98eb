"""Fields of the configuration: each states, beside its default, what it is and which values it takes.

    blocks: int = positive(8, "transformer blocks")

The check of a configuration and its documentation both read these statements.
"""

from collections.abc import Callable, Collection
from copy import copy
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast, get_type_hints

from trainer.config.sizes import parse_size
from trainer.errors import suggest

T = TypeVar("T")

_KEY = "spec"


def _anything(_value: Any) -> bool:
    return True


@dataclass(frozen=True)
class Spec:
    """What a field is, and which values it takes.

    Attributes:
        about: One line that describes the field.
        unit: The unit of its values, such as "tokens".
        words: The range of its values, as it completes "must be ...".
        holds: Whether a value lies in that range.
        choices: The texts that the field takes; empty where it is not a choice.
        or_file: Whether the path of a file is a choice too.
        kind: The type in words, where the annotation says less.
    """

    about: str
    unit: str = ""
    words: str = ""
    holds: Callable[[Any], bool] = _anything
    choices: Collection[str] = ()
    or_file: bool = False
    kind: str = ""

    def complaint(self, key: str, value: Any) -> str | None:
        """Return what is wrong with a value, or None. The value None ("not given") is always right.

        Args:
            key: The dotted key of the field.
            value: Its value.
        """
        if value is None:
            return None
        if self.choices and value not in self.choices and not (self.or_file and Path(value).is_file()):
            known = ", ".join(self.choices) + (", nor a file" if self.or_file else "")
            return f"{key}={value} is not one of {known}{suggest(value, self.choices)}"
        return None if self.holds(value) else f"{key}={value} must be {self.words}"


def spec_of(schema: type, name: str) -> Spec | None:
    """Return the statement of a field; a subclass that changes only the default keeps its base's."""
    for base in schema.__mro__:
        found = getattr(base, "__dataclass_fields__", {}).get(name)
        if found is not None and _KEY in found.metadata:
            spec: Spec = found.metadata[_KEY]
            return spec
    return None


def undescribed(schema: type) -> list[str]:
    """Return the names of the fields that state nothing and are not parts with fields of their own."""
    types = get_type_hints(schema)
    values = [field.name for field in fields(schema) if not is_dataclass(types[field.name])]
    return [name for name in values if spec_of(schema, name) is None]


def described(default: T, spec: Spec) -> T:
    """Return a field with a default and a statement; mutable defaults are copied for every instance."""
    if isinstance(default, (list, dict)):
        return cast(T, field(default_factory=partial(copy, default), metadata={_KEY: spec}))
    return field(default=default, metadata={_KEY: spec})


def plain(default: T, about: str, *, unit: str = "") -> T:
    """Return a field that takes every value of its type."""
    return described(default, Spec(about, unit))


def positive(default: T, about: str, *, unit: str = "") -> T:
    """Return a field of a number greater than 0."""
    return described(default, Spec(about, unit, "greater than 0", lambda value: value > 0))


def not_negative(default: T, about: str, *, unit: str = "") -> T:
    """Return a field of a number that is 0 or greater."""
    return described(default, Spec(about, unit, "0 or greater", lambda value: value >= 0))


def below_one(default: T, about: str) -> T:
    """Return a field of a number from 0 to below 1."""
    return described(default, Spec(about, "", "from 0 to below 1", lambda value: 0 <= value < 1))


def share(default: T, about: str) -> T:
    """Return a field of a number from 0 to 1."""
    return described(default, Spec(about, "", "from 0 to 1", lambda value: 0 <= value <= 1))


def above_zero_to_one(default: T, about: str) -> T:
    """Return a field of a number greater than 0, up to 1."""
    return described(default, Spec(about, "", "greater than 0, up to 1", lambda value: 0 < value <= 1))


def true_share(default: T, about: str) -> T:
    """Return a field of a number between 0 and 1, neither of the two."""
    return described(default, Spec(about, "", "between 0 and 1", lambda value: 0 < value < 1))


def one_of(default: str, choices: Collection[str], about: str, *, or_file: bool = False) -> str:
    """Return a field that takes one of some texts, or the path of a file.

    Args:
        default: The default.
        choices: The texts. They are read at every check, so that a table may grow.
        about: What the field is.
        or_file: Whether the path of a file will do.
    """
    return described(default, Spec(about, choices=choices, or_file=or_file))


def one_number(default: int, choices: Collection[int], about: str) -> int:
    """Return a field that takes one of some numbers."""
    *others, last = map(str, choices)
    words = f"{', '.join(others)} or {last}"
    return described(default, Spec(about, words=words, holds=lambda value: value in choices))


def all_positive(default: list[T], about: str) -> list[T]:
    """Return a field of a list of numbers greater than 0."""

    def holds(value: Any) -> bool:
        return all(each > 0 for each in value)

    return described(default, Spec(about, words="numbers greater than 0", holds=holds))


def auto_or_positive(default: Any, about: str, *, unit: str = "") -> Any:
    """Return a field that takes "auto" or a whole number greater than 0."""

    def holds(value: Any) -> bool:
        return value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value > 0)

    words = "auto, or a whole number greater than 0"
    return described(default, Spec(about, unit, words, holds, kind="int or auto"))


def size(default: Any, about: str) -> Any:
    """Return a field of a number of bytes, or a size with its unit."""
    words = "a size, such as 512MiB or 12GB"
    return described(
        default, Spec(about, "bytes", words, lambda value: bool(parse_size(value)), kind="int or size")
    )


def text(default: T, about: str, words: str) -> T:
    """Return a field of a text that is not empty, or of a list of such texts.

    Args:
        default: The default.
        about: What the field is.
        words: What its values must be, such as "a pattern, such as block.*".
    """

    def holds(value: Any) -> bool:
        texts = value if isinstance(value, list) else [value]
        return all(isinstance(each, str) and each for each in texts)

    return described(default, Spec(about, words=words, holds=holds))
