"""Values of an optimizer's state read back with their types and bits, or are refused."""

import json
import math
from collections import OrderedDict, deque
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load
from torch import Tensor

from trainer.checkpoint.packing import Packed, to_bytes, unpack
from trainer.checkpoint.values import Encoder, NotStorableError, decode, shared_memory

CPU = torch.device("cpu")


def through_a_file(value: Any) -> Any:
    tensors: dict[str, Tensor] = {}
    state = Encoder(tensors).encode({"value": value}, "it", "optimizer.w")
    packed = unpack(to_bytes(Packed(tensors, {"w": state}, "layer", 1)))
    return packed.state_of("w", lambda _: CPU)["value"]


def inline(value: Any) -> Any:
    return decode(json.loads(json.dumps(Encoder(None).encode(value, "it", ""))), {})


def alike(one: Any, other: Any) -> bool:
    """Return whether two values have the same types and bits."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(map(alike, one.values(), other.values()))
    if isinstance(one, list | tuple | deque):
        return len(one) == len(other) and all(map(alike, one, other))
    return repr(one) == repr(other)


VALUES = [
    None,
    True,
    3,
    -(10**30),
    0.1,
    math.inf,
    math.nan,
    -0.0,
    1 + 2j,
    "text é \ud800",
    b"\0\xff",
    [1, (2, [3.5]), {"a": None, 4: "b", (5, 6): [7]}],
    (),
    {1, 2, 3},
    frozenset("ab"),
    deque([1, 2], maxlen=2),
    OrderedDict(b=1, a=2),
    torch.Size([2, 3]),
    np.float32(0.1),
    np.int64(7),
    np.bool_(True),
    np.arange(6, dtype=">f4").reshape(2, 3),
    torch.tensor(5.0),
    torch.arange(6).reshape(2, 3).t(),
    torch.zeros(0, 4),
    torch.tensor([True, False]),
    torch.tensor([1.5], dtype=torch.bfloat16),
    torch.ones(2, 2).expand(3, 2, 2),
    [torch.ones(2), (torch.zeros(1), deque([torch.tensor(1)], maxlen=3))],
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_values_read_back(value: Any) -> None:
    assert alike(through_a_file(value), value)
    assert alike(inline(value), value)


def test_one_tensor_in_two_places_is_one_again() -> None:
    tensor = torch.ones(2)
    first, second = through_a_file([tensor, tensor])
    assert first is second


class Own:
    """A class of a user's."""


LOOP: list[Any] = []
LOOP.append(LOOP)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"a": [Own()]}, r"it\['a'\]\[0\] is of type .*Own"),
        (lambda: None, "of type builtins.function"),
        (LOOP, "same list|contains itself"),
        (torch.zeros(2, dtype=torch.complex128), "complex128"),
        (torch.eye(2).to_sparse(), "sparse"),
        (np.array(["text"]), "numpy.ndarray"),
        (torch.Generator(), "Generator"),
        ([LOOP[:0], [[0]] * 2], "the same list as another"),
    ],
)
def test_what_cannot_be_stored(value: Any, words: str) -> None:
    with pytest.raises(NotStorableError, match=words):
        Encoder({}).encode(value, "it", "it")


def test_a_tensor_of_two_parameters_is_refused() -> None:
    tensor, encoder = torch.ones(2), Encoder({})
    encoder.encode({"step": tensor}, "the state of a", "a")
    with pytest.raises(NotStorableError, match=r"the state of b\['step'\] is the same tensor"):
        encoder.encode({"step": tensor}, "the state of b", "b")


def test_memory_that_overlaps_is_found() -> None:
    whole = torch.zeros(10)
    assert shared_memory({"a": whole[:5], "b": whole[5:]}) is None
    assert shared_memory({"a": whole[:6], "b": whole[5:]}) == ("a", "b")
    assert shared_memory({"a": whole.reshape(2, 5).t(), "b": whole[9:]}) == ("a", "b")
    assert shared_memory({"a": whole[:0], "b": whole}) is None


@pytest.mark.parametrize(
    "encoded", [[], {}, {"unknown": 1}, {"numpy": ["O", [1], False, ""]}, {"tensor": "x"}]
)
def test_what_no_encoder_writes(encoded: Any) -> None:
    with pytest.raises(ValueError, match="optimizer's state of w"):
        Packed({}, {"w": {"dict": [["value", encoded]]}}).state_of("w", lambda _: CPU)


def test_safetensors_reads_a_file() -> None:
    tensors = {
        "weight.a": torch.randn(3, 4),
        "weight.half": torch.randn(5).bfloat16(),
        "weight.transposed": torch.randn(4, 2).t(),
        "weight.complex": torch.randn(2, dtype=torch.complex64),
        "buffer.number": torch.tensor(3),
        "buffer.empty": torch.empty(0, 3),
        "buffer.flags": torch.tensor([True, False, True]),
        "buffer.double": torch.tensor([0.1], dtype=torch.float64),
    }
    read = load(to_bytes(Packed(tensors, {}, "l", 1)))
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)
