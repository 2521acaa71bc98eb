"""Values of any depth as JSON and named tensors, so that they read back with their types.

JSON has None, bool, int, finite float and str. Everything else becomes an object with one key, its kind:

    {"tuple": [1, {"tensor": "optimizer.weight.sums"}]}
"""

import base64
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, MutableMapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainer.pipeline.tensor_bytes import bytes_of

# The types of tensors that safetensors can hold.
_DTYPES = {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.bool}
_DTYPES |= {torch.float8_e4m3fn, torch.float8_e5m2, torch.int64, torch.int32, torch.int16, torch.int8}
_DTYPES |= {torch.uint8, torch.uint16, torch.uint32, torch.uint64}
_SEQUENCES: dict[type, str] = {
    list: "list",
    tuple: "tuple",
    set: "set",
    frozenset: "frozenset",
    torch.Size: "size",
}
_SHAREABLE = (list, dict, OrderedDict, deque, set, np.ndarray)
_NUMPY_KINDS = "biufc"
_LARGEST_INLINE = 1 << 20  # bytes
_HOST = torch.device("cpu")


class NotStorableError(Exception):
    """A value that a checkpoint cannot hold. The message says where it is, and what."""


class Encoder:
    """Encodes the values of one optimizer; refuses memory that two values share.

    Args:
        tensors: Gets the tensors, by name; None encodes small tensors in place.
    """

    def __init__(self, tensors: MutableMapping[str, Tensor] | None) -> None:
        self._tensors = tensors
        self._calls = 0
        self._names: dict[int, tuple[int, str]] = {}  # by the tensor's identity: in which call, and its name
        self._containers: set[int] = set()
        self._kept: list[Any] = []  # keeps alive what identities stand for

    def into(self, tensors: MutableMapping[str, Tensor]) -> None:
        """Put the tensors of what follows elsewhere."""
        self._tensors = tensors

    def encode(self, value: Any, where: str, name: str) -> Any:
        """Return a value as JSON can hold it.

        Args:
            value: The value.
            where: Its place, for messages.
            name: The first part of the names of the tensors in it.

        Raises:
            NotStorableError: It is, or contains, something that has no encoding.
        """
        self._calls += 1
        try:
            return self._encode(value, where, name)
        except RecursionError:
            raise NotStorableError(f"{where} is nested too deeply, or contains itself") from None

    def _encode(self, value: Any, where: str, name: str) -> Any:
        kind = type(value)
        if value is None or kind in (bool, int, str) or (kind is float and math.isfinite(value)):
            return value
        if kind in (Tensor, nn.Parameter):
            self._check(value, where)
            return (
                {"tensor": self._tensor(value, where, name)} if self._tensors is not None else _inline(value)
            )
        if kind in _SHAREABLE:
            if id(value) in self._containers:
                raise NotStorableError(f"{where} is the same {kind.__name__} as another value")
            self._containers.add(id(value))
            self._kept.append(value)
        if kind in _SEQUENCES:
            return {_SEQUENCES[kind]: self._items(value, where, name)}
        if kind is deque:
            return {"deque": self._items(value, where, name), "maxlen": value.maxlen}
        if kind in (dict, OrderedDict):
            pairs = [
                [
                    self._encode(key, f"a key of {where}", name),
                    self._encode(item, f"{where}[{key!r}]", f"{name}.{key}"),
                ]
                for key, item in value.items()
            ]
            return {"dict" if kind is dict else "ordered": pairs}
        encode = _SCALARS.get(kind, _numpy if isinstance(value, np.generic | np.ndarray) else None)
        if encode is None or (encode is _numpy and value.dtype.kind not in _NUMPY_KINDS):
            raise NotStorableError(f"{where} is of type {kind.__module__}.{kind.__qualname__}")
        return encode(value)

    def _items(self, value: Any, where: str, name: str) -> list[Any]:
        return [self._encode(item, f"{where}[{i}]", f"{name}.{i}") for i, item in enumerate(value)]

    def _check(self, tensor: Tensor, where: str) -> None:
        """Raise if the tensor cannot be stored."""
        if tensor.layout != torch.strided or tensor.dtype not in _DTYPES or tensor.is_meta:
            raise NotStorableError(f"{where} is a tensor of {tensor.layout} and {tensor.dtype}")
        if self._tensors is None and tensor.nbytes > _LARGEST_INLINE:
            raise NotStorableError(
                f"{where} is a tensor of {tensor.nbytes} bytes, which must be per parameter"
            )

    def _tensor(self, tensor: Tensor, where: str, name: str) -> str:
        """Return the name of a tensor, the same one in all places of one parameter that hold it."""
        assert self._tensors is not None
        call, known = self._names.get(id(tensor), (self._calls, None))
        if call != self._calls:
            raise NotStorableError(f"{where} is the same tensor as that of another parameter")
        if known is not None:
            return known
        unique, number = name, 1
        while unique in self._tensors:
            unique, number = f"{name}~{number}", number + 1
        self._tensors[unique] = tensor.detach()
        self._names[id(tensor)] = (self._calls, unique)
        self._kept.append(tensor)
        return unique


def shared_memory(tensors: Mapping[str, Tensor]) -> tuple[str, str] | None:
    """Return the names of two tensors whose memory overlaps; None if there are none."""
    places = []
    for name, tensor in tensors.items():
        if tensor.numel():
            last = sum(
                (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
            )
            begin = tensor.data_ptr()
            places.append((str(tensor.device), begin, begin + (last + 1) * tensor.element_size(), name))
    places.sort()
    for (device, _, end, name), (other_device, begin, _, other) in pairwise(places):
        if device == other_device and begin < end:
            return name, other
    return None


def decode(
    encoded: Any,
    tensors: Mapping[str, Tensor],
    device: torch.device = _HOST,
    copies: dict[str, Tensor] | None = None,
) -> Any:
    """Return the value that `Encoder.encode` encoded.

    Args:
        encoded: What it returned.
        tensors: The tensors by name; the value gets copies.
        device: Where the copies are.
        copies: Gets the copies by name, so that what was one tensor is one again.

    Raises:
        ValueError: It is nothing that an encoder returns.
    """
    copies = {} if copies is None else copies
    if encoded is None or isinstance(encoded, bool | int | float | str):
        return encoded
    if not isinstance(encoded, dict) or not encoded:
        raise ValueError(f"{str(encoded)[:40]!r} is not an encoded value")
    kind, content = next(iter(encoded.items()))
    if kind == "tensor":
        if content not in copies:
            copies[content] = tensors[content].to(device, copy=True)
        return copies[content]
    if kind in ("dict", "ordered"):
        pairs = [[decode(part, tensors, device, copies) for part in pair] for pair in content]
        return dict(pairs) if kind == "dict" else OrderedDict(pairs)
    if kind in _BUILDERS:
        items = [decode(item, tensors, device, copies) for item in content]
        return deque(items, encoded["maxlen"]) if kind == "deque" else _BUILDERS[kind](items)
    if kind == "inline":
        return _read_inline(content).to(device)
    if kind not in _READERS:
        raise ValueError(f"{kind!r} is not a kind of value")
    return _READERS[kind](content)


def _inline(tensor: Tensor) -> dict[str, Any]:
    data = base64.b64encode(bytes_of(tensor)).decode()
    return {"inline": [str(tensor.dtype).removeprefix("torch."), list(tensor.shape), data]}


def _read_inline(content: Any) -> Tensor:
    dtype, shape, data = content
    tensor = torch.empty(shape, dtype=_read_dtype(dtype))
    raw = np.frombuffer(base64.b64decode(data), dtype=np.uint8).copy()
    if tensor.nbytes != raw.size:
        raise ValueError(f"a tensor of {tensor.nbytes} bytes has {raw.size}")
    return torch.from_numpy(raw).view(tensor.dtype).reshape(shape) if raw.size else tensor


def _numpy(value: Any) -> dict[str, Any]:
    array = np.asarray(value)
    data = base64.b64encode(array.tobytes()).decode()
    return {"numpy": [array.dtype.str, list(array.shape), isinstance(value, np.generic), data]}


def _read_numpy(content: Any) -> Any:
    dtype, shape, scalar, data = content
    if np.dtype(dtype).kind not in _NUMPY_KINDS:
        raise ValueError(f"{dtype!r} is not a type of numbers")
    array = np.frombuffer(base64.b64decode(data), dtype=dtype).reshape(shape).copy()
    return array[()] if scalar else array


def _read_dtype(content: Any) -> torch.dtype:
    return next(dtype for dtype in _DTYPES if str(dtype) == f"torch.{content}")


_SCALARS: dict[type, Callable[[Any], Any]] = {
    float: lambda value: {"float": repr(value)},  # infinities and NaN
    complex: lambda value: {"complex": [repr(value.real), repr(value.imag)]},
    bytes: lambda value: {"bytes": base64.b64encode(value).decode()},
}
_READERS: dict[str, Callable[[Any], Any]] = {
    "float": float,
    "complex": lambda content: complex(*map(float, content)),
    "bytes": base64.b64decode,
    "numpy": _read_numpy,
}
_BUILDERS: dict[str, Callable[[list[Any]], Any]] = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "size": torch.Size,
    "deque": deque,
}
