"""A module of a layer's own, whatever its `build` returns.

A `build` may return a module that exists already: a part of a network with trained weights, say. Training
changes it, so the next one to build the layer (the copy of a tied parameter, the reference of `verify`, the
next run of a sweep) would get other weights. Such a module is copied, and keeps its values.
"""

import copy
from collections.abc import Callable
from contextlib import suppress
from itertools import chain
from typing import Any

from torch import nn
from torch.nn.modules import module as hooks


def build_own(build: Callable[[], nn.Module]) -> nn.Module:
    """Return what `build` returns, or a copy of it if it has parameters or buffers from before."""
    registered: dict[int, Any] = {}  # by identifier; kept alive, so that none is used twice

    def record(_module: nn.Module, _name: str, tensor: Any) -> None:
        registered[id(tensor)] = tensor

    handles = (
        hooks.register_module_parameter_registration_hook(record),
        hooks.register_module_buffer_registration_hook(record),
    )
    try:
        module = build()
    finally:
        for handle in handles:
            handle.remove()
    if any(id(tensor) not in registered for tensor in chain(module.parameters(), module.buffers())):
        with suppress(Exception):  # it holds what cannot be copied, such as a lock: then it is used as it is
            return copy.deepcopy(module)
    return module
