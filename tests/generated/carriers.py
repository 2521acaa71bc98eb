"""What an activation travels in. Every layer takes any of these, and returns the one that it was given."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

Extras = dict[str, Any]


class Pair(NamedTuple):
    x: Any
    extras: Extras


@dataclass
class Record:
    x: Any
    extras: Extras
    note: str = "a record"


@dataclass(frozen=True)
class FrozenRecord:
    extras: Extras
    x: Any


class Outputs(OrderedDict[str, Any]):
    """Like the outputs of Hugging Face's models: a dict whose entries are attributes too."""

    def __init__(self, *items: Any, **more: Any) -> None:
        super().__init__(*items, **more)
        self.__dict__.update(self)


class Plain(dict[str, Any]):
    """A subclass of dict without more."""


def pack(form: str, x: Any, extras: Extras) -> Any:
    """Return x and the extras in a carrier; a plain tensor where there are no extras."""
    if form == "tensor" and not extras:
        return x
    makers = {
        "list": lambda: [x, extras],
        "dict": lambda: {"x": x, **extras},
        "pair": lambda: Pair(x, extras),
        "record": lambda: Record(x, extras),
        "frozen": lambda: FrozenRecord(extras, x),
        "outputs": lambda: Outputs(x=x, **extras),
        "plain": lambda: Plain(x=x, **extras),
        "ordered": lambda: OrderedDict([*extras.items(), ("x", x)]),
        "nested": lambda: ((x, [None, (extras,)]), "nested"),
    }
    return makers.get(form, lambda: (x, extras))()


FORMS = (
    "tensor",
    "tuple",
    "list",
    "dict",
    "pair",
    "record",
    "frozen",
    "outputs",
    "plain",
    "ordered",
    "nested",
)


def unpack(activation: Any) -> tuple[Tensor, Extras]:
    """Return the tensor and the extras of a carrier."""
    if isinstance(activation, (Pair, Record, FrozenRecord)):
        x, extras = activation.x, activation.extras
    elif isinstance(activation, dict):
        extras = dict(activation)
        x = extras.pop("x")
    elif isinstance(activation, (Tensor, PackedSequence)):
        x, extras = activation, {}
    elif isinstance(activation[1], str):  # nested
        (x, (_, (extras,))), _ = activation
    else:
        x, extras = activation
    if isinstance(x, PackedSequence):
        x, _ = pad_packed_sequence(x, batch_first=True, total_length=extras.get("time"))
    assert isinstance(x, torch.Tensor)
    return x, extras
