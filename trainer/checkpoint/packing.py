"""The content of a layer's file: weights, buffers and optimizer state, as one safetensors file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from trainer.distributed.world import Communicator
from trainer.pipeline.layer import BuiltLayer


@dataclass(frozen=True)
class Packed:
    """The content of a layer's file.

    Attributes:
        tensors: By "weight.<name>", "buffer.<name>" or "optimizer.<name>.<key>".
        scalars: The optimizer's state other than tensors, by parameter.
    """

    tensors: Mapping[str, Tensor]
    scalars: Mapping[str, Mapping[str, Any]]


def optimizer_state(layer: BuiltLayer, optimizer: torch.optim.Optimizer | None) -> Packed:
    """Return the optimizer's state of a layer's parameters."""
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, dict[str, Any]] = {}
    for name, parameter in layer.owned():
        state = optimizer.state.get(parameter, {}) if optimizer is not None else {}
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{name}.{key}"] = value
            else:
                scalars.setdefault(name, {})[key] = value
    return Packed(tensors, scalars)


def gather_shards(state: Packed, replicas: Communicator) -> Packed:
    """Return a layer's optimizer state, joined with the shards that the other replicas send."""
    for rank in range(1, replicas.size):
        theirs = unpack(replicas.receive_bytes(rank))
        state = Packed({**state.tensors, **theirs.tensors}, {**state.scalars, **theirs.scalars})
    return state


def pack_layer(layer: BuiltLayer, state: Packed) -> bytes:
    """Return the bytes of a layer's file, with what `state` has of its optimizer."""
    weights = {f"weight.{name}": parameter for name, parameter in layer.owned()}
    buffers = {f"buffer.{name}": buffer for name, buffer in persistent_buffers(layer.module)}
    return to_bytes(Packed({**weights, **buffers, **state.tensors}, state.scalars))


def to_bytes(packed: Packed) -> bytes:
    """Return the bytes of a file."""
    on_host = {key: tensor.detach().cpu().contiguous() for key, tensor in packed.tensors.items()}
    return save(on_host, metadata={"scalars": json.dumps(packed.scalars, sort_keys=True)})


def unpack(data: bytes) -> Packed:
    """Return the content of a file's bytes."""
    # A safetensors file begins with the length of its JSON header, which holds the metadata.
    length = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    return Packed(load(data), json.loads(metadata.get("scalars", "{}")))


def persistent_buffers(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Return the buffers that belong to a module's state, by name."""
    saved = module.state_dict(keep_vars=True)
    return [(name, buffer) for name, buffer in module.named_buffers() if name in saved]
