"""The range that a field declares is enforced, also in subclasses."""

from dataclasses import dataclass

import pytest

from trainer.config.check import check_part
from trainer.config.fields import (
    auto_or_positive,
    below_one,
    one_of,
    plain,
    positive,
    share,
    size,
    spec_of,
    text,
)
from trainer.errors import UserError


@dataclass
class Inner:
    rate: float = share(0.5, "a share")


@dataclass
class Base:
    count: int = positive(1, "how many", unit="things")
    kind: str = one_of("a", ("a", "b"), "which")
    names: list[str] = text([], "names", "a list of names")
    parts: list[Inner] = plain([], "parts")


@dataclass
class Derived(Base):
    count: int = 7


def complaint(part: object, prefix: str = "") -> str:
    with pytest.raises(UserError) as caught:
        check_part(part, prefix)
    return str(caught.value)


def test_a_subclass_may_change_the_default_and_keeps_the_range() -> None:
    check_part(Derived())
    assert Derived().count == 7
    assert complaint(Derived(count=0)) == "count=0 must be greater than 0"
    spec = spec_of(Derived, "count")
    assert spec is not None
    assert (spec.about, spec.unit) == ("how many", "things")


def test_parts_in_lists_are_checked_and_named_by_index() -> None:
    check_part(Base(parts=[Inner(), Inner(1.0)]))
    assert complaint(Base(parts=[Inner(), Inner(1.5)]), "x.") == "x.parts.1.rate=1.5 must be from 0 to 1"


def test_mutable_defaults_are_not_shared() -> None:
    one, other = Base(), Base()
    one.names.append("x")
    assert other.names == Base().names == []


def test_a_choice_may_grow() -> None:
    known = {"one": 1}

    @dataclass
    class Part:
        kind: str = one_of("one", known, "which")

    assert complaint(Part("two")) == "kind=two is not one of one"
    known["two"] = 2
    check_part(Part("two"))


def test_a_file_may_be_a_choice(tmp_path: object) -> None:
    @dataclass
    class Part:
        kind: str = one_of("one", ("one",), "which", or_file=True)

    check_part(Part(__file__))
    assert complaint(Part("on")) == "kind=on is not one of one, nor a file; did you mean one?"


@pytest.mark.parametrize(
    ("made", "right", "wrong"),
    [
        (below_one(0.1, "x"), [0, 0.999], [-0.1, 1.0, float("nan")]),
        (share(0.1, "x"), [0, 1.0], [-0.1, 1.1, float("nan")]),
        (auto_or_positive("auto", "x"), ["auto", 1], [0, -1, True, 1.5, "two", "AUTO"]),
        (size(None, "x"), [1, "512MiB", "1.5 GB"], ["much", 0, "0MiB", "-1"]),
        (text("x", "x", "words"), ["x", ["x", "y"], []], ["", [""], [1]]),
    ],
)
def test_ranges(made: object, right: list[object], wrong: list[object]) -> None:
    spec = made.metadata["spec"]
    assert spec.complaint("key", None) is None
    assert [value for value in right if spec.complaint("key", value)] == []
    assert [value for value in wrong if not spec.complaint("key", value)] == []
