"""Activations flatten into tensors and a structure, and unflatten again."""

import pickle
import subprocess
import sys
from collections import OrderedDict, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence
from torch.utils._pytree import register_pytree_node

from tests.support.launch import REPOSITORY
from trainer.activation import TensorSpec, flatten, spec_of, unflatten
from trainer.data.dataset import as_tensors

tensors = st.builds(
    torch.zeros,
    st.lists(st.integers(0, 3), max_size=3).map(tuple),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool]),
)
activations = st.recursive(
    st.none() | tensors,
    lambda parts: (
        st.lists(parts, max_size=3).map(tuple) | st.dictionaries(st.text(max_size=3), parts, max_size=3)
    ),
)


def same(one: Any, other: Any) -> bool:
    """Return whether two activations have identical tensors in the same places."""
    if isinstance(one, Tensor) or one is None:
        return one is other
    if isinstance(one, tuple):
        return isinstance(other, tuple) and len(one) == len(other) and all(map(same, one, other))
    return (
        isinstance(other, dict)
        and list(one) == list(other)
        and all(same(one[key], other[key]) for key in one)
    )


@pytest.mark.slow
@given(activations)
def test_roundtrip(activation: Any) -> None:
    flat, nest = flatten(activation)
    assert all(isinstance(tensor, Tensor) for tensor in flat)
    assert same(activation, unflatten(flat, nest))


@pytest.mark.slow
@given(activations)
def test_structure_can_be_sent_and_compared(activation: Any) -> None:
    shape = spec_of(*flatten(activation))
    sent = pickle.loads(pickle.dumps(shape))
    assert sent == shape
    assert hash(sent) == hash(shape)


def test_structure_distinguishes_activations() -> None:
    x = torch.zeros(2, 3)
    different = [
        x,
        (x,),
        {"a": x},
        {"b": x},
        (x, None),
        (x, x),
        torch.zeros(3, 2),
        x.double(),
        torch.zeros(2, 3, requires_grad=True),
    ]
    assert len({spec_of(*flatten(activation)) for activation in different}) == len(different)


def test_which_tensors_get_a_gradient() -> None:
    learning = torch.zeros(2, requires_grad=True)
    shape = spec_of(*flatten((torch.zeros(1), {"x": learning, "mask": torch.zeros(3, dtype=torch.bool)})))
    assert shape.differentiable == (TensorSpec((2,), torch.float32, True),)


def test_bytes() -> None:
    assert TensorSpec.of(torch.zeros(3, 5, dtype=torch.bfloat16)).bytes == 30
    assert TensorSpec.of(torch.zeros(())).bytes == 4


class Pair(NamedTuple):
    x: Any
    skip: Any


class Output(OrderedDict[str, Any]):
    """A dict whose keys are attributes."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


@dataclass(frozen=True)
class Encoded:
    x: Tensor
    length: int
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        assert self.length >= 0


class Registered:
    def __init__(self, x: Tensor, name: str) -> None:
        self.x, self.name = x, name


register_pytree_node(
    Registered, lambda value: ([value.x], value.name), lambda parts, name: Registered(*parts, name)
)
X = torch.arange(6.0).reshape(2, 3)
PACKED = pack_sequence([torch.arange(3.0), torch.arange(2.0)])
KEPT = [
    [X, [X, None]],
    Pair(X, (X, 0.5)),
    Output(x=X, skip=[X]),
    defaultdict(list, {"a": X}),
    Encoded(X, 3),
    {"number": 3, "flag": True, "text": "é", "type": torch.bfloat16, "range": slice(2)},
    PACKED,
    Registered(X, "name"),
    (Encoded(X, 1, X), Output(x=Pair(X, None))),
]


@pytest.mark.parametrize("activation", KEPT, ids=lambda each: type(each).__name__)
def test_types_and_plain_values_are_kept(activation: Any) -> None:
    flat, nest = flatten(activation)
    for structure in (nest, pickle.loads(pickle.dumps(nest))):
        again = unflatten(flat, structure)
        assert type(again) is type(activation)
        assert flatten(again)[1] == nest
        assert all(one is other for one, other in zip(flatten(again)[0], flat, strict=True))
        if not isinstance(activation, Registered):
            assert repr(again) == repr(activation)


def test_a_received_class_need_not_have_been_seen(tmp_path: Path) -> None:
    flat, nest = flatten(Pair(Encoded(X, 2), PACKED))
    (tmp_path / "nest").write_bytes(pickle.dumps(nest))
    code = (
        "import pickle, sys, torch; from trainer.activation import unflatten\n"
        f"nest = pickle.load(open({str(tmp_path / 'nest')!r}, 'rb'))\n"
        f"print(unflatten([torch.zeros(1)] * {len(flat)}, nest))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Pair(x=Encoded(x=tensor([0.]), length=2, mask=None), skip=PackedSequence(")


def test_plain_values_of_different_types_differ() -> None:
    assert len({flatten((X, value))[1] for value in (1, 1.0, True, "1", None, 2)}) == 6


@pytest.mark.parametrize("wrong", [np.zeros(2), (X, object()), {"a": [torch.nn.Linear(1, 1)]}])
def test_anything_else_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"not a (ndarray|object|Linear)"):
        flatten(wrong)


def test_arrays_become_tensors_in_any_class(tmp_path: Path) -> None:
    """Also in one that nothing has seen before."""

    @dataclass
    class Sample:
        values: Any
        name: str

    class Entries(dict[str, Any]):
        pass

    read = as_tensors([Sample(np.ones(2), "one"), Entries(a=Entries(b=np.zeros(3)))])
    assert isinstance(read[0], Sample)
    assert torch.equal(read[0].values, torch.ones(2, dtype=torch.float64))
    assert read[0].name == "one"
    assert torch.equal(read[1]["a"]["b"], torch.zeros(3, dtype=torch.float64))
