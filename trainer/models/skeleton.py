"""A layer's skeleton: its module on torch's meta device, with shapes and no values.

Building one runs the user's code, and a module that `build` returns may exist already. So skeletons are only
made in a process aside: see `trainer.distributed.aside`.
"""

import copy
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from trainer.distributed.lazy_compiler import postpone_compiler
from trainer.models.model import Layer

COMPILED = "_orig_mod"  # the name under which `torch.compile(module)` holds the module


def never_compile() -> None:
    """Let `torch.compile` return what it is given from now on; only for a process aside."""
    torch.compile = _uncompiled
    nn.Module.compile = _uncompiled  # type: ignore[method-assign, assignment]
    postpone_compiler()  # importing it takes longer than all the rest
    if not getattr(sys.modules["torch._dynamo"], "stands_in", False):
        torch.compiler.set_stance("force_eager")  # for what is compiled already


def build_skeleton(layer: Layer) -> tuple[nn.Module, nn.Module]:
    """Build a layer without memory, or with memory if the layer reads its initial values.

    Returns:
        The module as `build` returns it, and its skeleton; they may be the same.
    """
    try:
        with torch.device("meta"):
            module = layer.build()
    except Exception:  # a custom layer may raise anything; if it is at fault, it raises below too
        module = layer.build()
    return module, skeleton(module)


def skeleton(module: nn.Module, compute: torch.dtype = torch.float32) -> nn.Module:
    """Return a module on the meta device, with float32 parameters and buffers in the type `compute`.

    Args:
        module: It stays as it is, unless it cannot be copied.
        compute: The type.
    """
    compiled = any(COMPILED in part._modules or part._compiled_call_impl for part in module.modules())
    if compute is torch.float32 and not compiled and all(t.is_meta for _, t in _tensors(module)):
        return module
    memo: dict[int, Any] = {}
    try:
        for parent, tensor in _tensors(module):
            if id(tensor) not in memo:
                memo[id(tensor)] = _on_meta(tensor, compute if parent is not None else tensor.dtype)
        for part in reversed(list(module.modules())):
            if COMPILED in part._modules:
                memo[id(part)] = copy.deepcopy(part._modules[COMPILED], memo)
        copied = copy.deepcopy(module, memo)
    except Exception:  # it holds what cannot be copied, such as a lock
        return module.to("meta", compute)
    for part in copied.modules():
        part._compiled_call_impl = None
    return copied


def _uncompiled(model: Any = None, *_args: Any, **_options: Any) -> Any:
    return (lambda function: function) if model is None else model


def _tensors(module: nn.Module) -> Iterator[tuple[nn.Module | None, Tensor]]:
    """Yield all tensors of a module: first its parameters and buffers, then, with None, plain attributes."""
    parts: list[nn.Module] = list(module.modules())
    for part in parts:
        for tensor in (*part._parameters.values(), *part._buffers.values()):
            if tensor is not None:
                yield part, tensor
    for part in parts:
        for value in vars(part).values():
            if isinstance(value, Tensor):
                yield None, value


def _on_meta(tensor: Tensor, compute: torch.dtype) -> Tensor:
    """Return a tensor's shape as the same kind of tensor."""
    if is_lazy(tensor):
        kind: Any = type(tensor)
        lazy: Tensor = kind(device="meta", dtype=tensor.dtype)
        return lazy
    dtype = compute if tensor.dtype is torch.float32 else tensor.dtype
    with torch.no_grad():
        meta = torch.empty_like(tensor, dtype=dtype, device="meta")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(meta, requires_grad=tensor.requires_grad)
    return meta
