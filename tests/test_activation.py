"""Activations flatten into tensors and a structure, and unflatten again."""

import pickle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from trainer.activation import TensorSpec, flatten, spec_of, unflatten

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


@pytest.mark.parametrize("wrong", ["text", 3, [torch.zeros(1)], (torch.zeros(1), 2.0), {"a": [None]}])
def test_anything_else_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"not (str|int|list|float)"):
        flatten(wrong)
