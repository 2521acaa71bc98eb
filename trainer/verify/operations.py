"""The operations of a layer's forward and backward: a digest of each result, and where it comes from."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves, tree_map

from trainer.activation import Activation
from trainer.pipeline.kernel_mode import KernelMode
from trainer.pipeline.tensor_bytes import tensors_in
from trainer.verify.values import sha256

aten = torch.ops.aten
_UNINITIALISED = frozenset({aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.resize_})
_STATISTICS = ("trainer.pipeline.statistics", "trainer.verify.reference_buffers")
_TORCH = str(Path(torch.__file__).parent)
_OURS = tuple(str(Path(__file__).parents[1] / package) for package in ("verify", "pipeline", "distributed"))


@dataclass(frozen=True)
class Operation:
    """An operation.

    Attributes:
        kernel: Its name, such as "aten.mul.Tensor".
        digest: The SHA-256 of each result.
        place: The module within the layer, and the line of code, as far as they are known.
    """

    kernel: str
    digest: tuple[str, ...]
    place: str


def run_recorded(module: nn.Module, inputs: Activation) -> tuple[list[Operation], Activation]:
    """Run a layer's forward, and a backward from gradients of one, which adds to no parameter's gradient.

    Buffers are as before afterwards. What keeps running statistics does not run, because the launch and the
    reference do so in different ways. If the layer raises, the operations before that are returned, and None.
    """
    recorder = _Recorder()
    leaves = tree_map(lambda leaf: _leaf(leaf) if isinstance(leaf, Tensor) else leaf, inputs)
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        with _without_statistics(module), recorder, _tracking(module, recorder):
            output = module(leaves)
            recorder.path = ["the backward"]
            outputs = [tensor for tensor in tensors_in(output) if tensor.requires_grad]
            trained = [t for t in (*tree_leaves(leaves), *module.parameters()) if _is_trained(t)]
            if outputs:
                ones = [torch.ones_like(tensor) for tensor in outputs]
                torch.autograd.grad(outputs, trained, ones, allow_unused=True)
    except Exception:  # a custom layer may raise anything
        output = None
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)
    return recorder.operations, output


class _Recorder(KernelMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.path: list[str] = []

    def run(self, kernel: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a kernel, and record it."""
        result = kernel(*args, **kwargs)
        if kernel.overloadpacket not in _UNINITIALISED:
            digest = tuple(sha256(tensor.detach()) for tensor in tensors_in(result))
            place = ", ".join(filter(None, (self.path[-1] if self.path else "", _line())))
            self.operations.append(Operation(str(kernel), digest, place))
        return result


@contextmanager
def _tracking(module: nn.Module, recorder: _Recorder) -> Iterator[None]:
    """Keep the path of the module that is running in `recorder.path`."""
    names = {part: name for name, part in module.named_modules()}
    handles = []

    def enter(part: nn.Module, _inputs: object) -> None:
        recorder.path.append(names[part])

    def leave(*_: object) -> None:
        recorder.path.pop()

    for part in names:
        handles.append(part.register_forward_pre_hook(enter))
        handles.append(part.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _without_statistics(module: nn.Module) -> Iterator[None]:
    """Take away the hooks that keep running statistics, and begin these at 0."""
    kept: list[tuple[dict[int, Any], dict[int, Any]]] = []
    for part in module.modules():
        if isinstance(part, _BatchNorm) and part.running_mean is not None:
            for hooks in (part._forward_pre_hooks, part._forward_hooks):
                kept.append((hooks, dict(hooks)))
                for number, hook in kept[-1][1].items():
                    if getattr(hook, "__module__", None) in _STATISTICS:
                        del hooks[number]
            with torch.no_grad():
                for buffer in part.buffers():
                    buffer.zero_()
    try:
        yield
    finally:
        for hooks, before in kept:
            hooks.clear()
            hooks.update(before)


def _line() -> str:
    """Return the innermost line that is neither torch's nor of what runs layers here; "" if there is none."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith((_TORCH, *_OURS, "<")):
            return f"{Path(file).name}:{frame.f_lineno}" if _is_within_layer(frame) else ""
        frame = frame.f_back  # type: ignore[assignment]
    return ""


def _is_within_layer(frame: Any) -> bool:
    """Return whether `run_recorded` called this frame, and not the other way round."""
    while frame is not None:
        if frame.f_code is run_recorded.__code__:
            return True
        frame = frame.f_back
    return False


def _leaf(tensor: Tensor) -> Tensor:
    floats = tensor.is_floating_point() or tensor.is_complex()
    return tensor.detach().clone().requires_grad_(floats)


def _is_trained(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.requires_grad
