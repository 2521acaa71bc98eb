"""The content of a layer's file: weights, buffers and optimizer state, as one safetensors file."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from trainer.checkpoint.values import decode
from trainer.distributed.world import Communicator
from trainer.models.names import plain_buffers, plain_name

# A parameter's weight; its weight while it trains, where an optimizer keeps another one; a buffer; the
# optimizer's state of a parameter.
KINDS = ("weight", "training", "buffer", "optimizer")
_CONTENT = "content"  # the entry of the metadata that has what is no tensor
_SCALARS = "scalars"  # the same in format 1
_TYPES = {  # by their names in the format
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class Packed:
    """The content of a layer's file.

    Attributes:
        tensors: By "weight.<name>", "buffer.<name>" or "optimizer.<name>.<key>".
        state: The optimizer's state by parameter, as `trainer.checkpoint.values` encodes it.
        layer: The layer; None in files of format 1.
        step: The step; None for layers that no step changes, and in files of format 1.
        scalars: Of format 1: the state other than tensors, by parameter. None in later files.
    """

    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any] = field(default_factory=dict)
    layer: str | None = None
    step: int | None = None
    scalars: Mapping[str, Mapping[str, Any]] | None = None

    def state_of(self, name: str, device_of: Callable[[Any], torch.device]) -> dict[Any, Any]:
        """Return copies of the optimizer's state of a parameter; empty if there is none.

        Args:
            name: The parameter's.
            device_of: Returns the device of the tensors of each key.

        Raises:
            ValueError: It is damaged.
        """
        if self.scalars is not None:
            prefix = f"optimizer.{name}."
            names = {key.removeprefix(prefix): key for key in self.tensors if key.startswith(prefix)}
            tensors = {key: self.tensors[full].to(device_of(key), copy=True) for key, full in names.items()}
            return tensors | dict(self.scalars.get(name, {}))
        copies: dict[str, Tensor] = {}
        state = {}
        try:
            for encoded_key, encoded in self.state[name]["dict"] if name in self.state else ():
                key = decode(encoded_key, {})
                state[key] = decode(encoded, self.tensors, device_of(key), copies)
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, RecursionError) as error:
            raise ValueError(f"the optimizer's state of {name}: {error!r}"[:200]) from error
        return state


def gather_shards(state: Packed, replicas: Communicator) -> Packed:
    """Return a layer's optimizer state, joined with the shards that the other replicas send."""
    for rank in range(1, replicas.size):
        theirs = unpack(replicas.receive_bytes(rank))
        state = Packed({**state.tensors, **theirs.tensors}, {**state.state, **theirs.state})
    return state


def to_bytes(packed: Packed) -> bytes:
    """Return the bytes of a file."""
    return b"".join(chunks(packed))


def chunks(packed: Packed) -> Iterator[Any]:
    """Yield the bytes of a file: its header, then one tensor after another.

    `safetensors.torch.save` would hold two copies of all tensors, which may be most of what a rank holds. The
    format is https://github.com/huggingface/safetensors#format: the header's length, the header, and numbers
    without gaps, those of large types first, so that they are aligned.
    """
    tensors = sorted(packed.tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    content = {"layer": packed.layer, "step": packed.step, "state": packed.state}
    header: dict[str, Any] = {"__metadata__": {_CONTENT: json.dumps(content, sort_keys=True)}}
    end = 0
    for key, tensor in tensors:
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[key] = {
            "dtype": _TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for _, tensor in tensors:
        if tensor.numel():
            yield tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def unpack(data: bytes) -> Packed:
    """Return the content of a file's bytes.

    Raises:
        ValueError: These are not the bytes of such a file.
    """
    # A safetensors file begins with the length of its JSON header, which holds the metadata.
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8:  # noqa: PLR2004
        raise ValueError(f"its header has {length} bytes, the file {len(data)}")
    try:
        header = json.loads(data[8 : 8 + length])
        metadata = header.get("__metadata__", {})
        unknown = sorted({key.partition(".")[0] for key in header} - {*KINDS, "__metadata__"})
        unknown += sorted(metadata.keys() - {_CONTENT, _SCALARS})
        if unknown:
            raise ValueError(f"unknown entries {', '.join(unknown)}: a newer trainer may have made it")
        tensors = load(data)
        if _CONTENT not in metadata:
            scalars = json.loads(metadata.get(_SCALARS, "{}"))
            return Packed(tensors, scalars={name: dict(state) for name, state in scalars.items()})
        content = json.loads(metadata[_CONTENT])
        if content.keys() != {"layer", "step", "state"}:
            raise ValueError(f"unknown content {', '.join(content)}: a newer trainer may have made it")
        return Packed(tensors, dict(content["state"]), content["layer"], content["step"])
    except (SafetensorError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"its header is damaged: {error!r}"[:200]) from error


def persistent_buffers(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Return the buffers that belong to a module's state, by name."""
    saved = {plain_name(name) for name in module.state_dict(keep_vars=True)}
    return [(name, buffer) for name, buffer in plain_buffers(module).items() if name in saved]
