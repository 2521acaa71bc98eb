"""Initial weights of a part of a model, without memory for the rest.

The model is built once on the meta device, and every call of torch that its constructors make is noted. The
calls that lead to a part's tensors are then done again, in their order, with memory: under the layer's own
seed, so that initial weights are the same in every layout.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from trainer.cut.parts import tensors
from trainer.models.skeleton import skeleton
from trainer.pipeline.tensor_bytes import memory_of, tensors_in


@dataclass(frozen=True)
class _Reference:
    """A tensor of the record as it was then: `x.data = y` gives it other memory later.

    Attributes:
        tensor: Identifies the tensor.
        memory: Identifies its memory.
        place: Its shape, strides and offset there.
    """

    tensor: int
    memory: int
    place: tuple[tuple[int, ...], tuple[int, ...], int]

    @classmethod
    def of(cls, tensor: Tensor) -> "_Reference":
        """Return that of a tensor."""
        place = tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset())
        return cls(id(tensor), memory_of(tensor), place)


@dataclass(frozen=True)
class _Call:
    """A call of torch, with references for tensors on the meta device.

    Attributes:
        function: What was called.
        args: Its arguments.
        kwargs: Its keyword arguments.
        result: What it returned.
        grad: Whether gradients were enabled.
        makes: The memory that it made or may have written into.
        reads: The memory that it may have read.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any
    grad: bool
    makes: frozenset[int]
    reads: frozenset[int]


class _Record(TorchFunctionMode):
    """Notes calls of torch, made on the meta device."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []
        self._kept: list[Any] = []  # so that no identifier is used twice
        self._meta = torch.device("meta")

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Note a call."""
        given = _references(args), _references(kwargs or {})
        before = [tensor.untyped_storage() for tensor in tensors_in((args, kwargs)) if tensor.is_meta]
        grad = torch.is_grad_enabled()
        with self._meta:
            result = func(*args, **(kwargs or {}))
        returned = _references(result)
        reads, makes = _memory(given), _memory(returned)
        name = getattr(func, "__name__", "")
        if name.endswith("_") or name in ("__set__", "__setitem__") or "out" in given[1]:
            makes |= reads | _memory(_references((args, kwargs)))
        if makes:
            self._kept.append((before, args, kwargs, result))
            self.calls.append(_Call(func, *given, returned, grad, makes, reads))
        return result


class RecordedWeights:
    """The initial weights of a model, as its constructors make them.

    Args:
        make: Builds the model.

    Attributes:
        skeleton: The model, on the meta device.
    """

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        with warnings.catch_warnings(), _noted_trunc_normal(), _Record() as record:
            warnings.filterwarnings("ignore", "for .*: copying from a non-meta")  # it is noted
            made = make()
            for module in made.modules():
                # Hugging Face's models leave this out where tensors are made on the meta device.
                if type(module).__module__.startswith("transformers.") and hasattr(module, "init_weights"):
                    module.initialize_weights()  # type: ignore[operator]
        self._record = record
        self._tensors = dict(tensors(made))
        # What has values already, such as weights that were read from a file, is copied, and stays as it is.
        self.skeleton = skeleton(made)

    def values(self, paths: Iterable[str]) -> dict[str, Tensor]:
        """Return initial values of some tensors by path, drawn from the global generators."""
        asked = {path: self._tensors[path] for path in paths}
        real = {path: tensor for path, tensor in asked.items() if not tensor.is_meta}
        wanted = {path: _Reference.of(tensor) for path, tensor in asked.items() if tensor.is_meta}
        needed = {reference.memory for reference in wanted.values()}
        chosen: list[_Call] = []
        for call in reversed(self._record.calls):
            if call.makes & needed:
                chosen.append(call)
                needed |= call.reads
        replay = _Replay()
        for call in reversed(chosen):
            replay.do(call)
        made = {path: replay.of(reference) for path, reference in wanted.items()}
        uses = Counter(memory_of(tensor) for tensor in made.values())
        alone = {path for path, tensor in made.items() if uses[memory_of(tensor)] == 1 and _is_whole(tensor)}
        return {
            path: tensor.detach() if path in alone else tensor.detach().clone()
            for path, tensor in (real | made).items()
        }


class _Replay:
    """Does calls of a record again, on the CPU."""

    def __init__(self) -> None:
        self._by_tensor: dict[int, Tensor] = {}
        self._by_memory: dict[int, Tensor] = {}

    def do(self, call: _Call) -> None:
        """Do a call."""
        args = tree_map(self._now, call.args)
        kwargs = tree_map(self._now, call.kwargs)
        with torch.set_grad_enabled(call.grad), torch.device("cpu"):
            result = call.function(*args, **kwargs)
        for before, now in zip(tree_leaves(call.result), tree_leaves(result), strict=True):
            if isinstance(before, _Reference):
                self._by_tensor[before.tensor] = now
                self._by_memory.setdefault(before.memory, now.detach())

    def of(self, reference: _Reference) -> Tensor:
        """Return what a tensor of the record is now."""
        if reference.tensor in self._by_tensor:
            return self._by_tensor[reference.tensor]
        if reference.memory not in self._by_memory:
            raise NotImplementedError("a tensor that the model's constructors did not make by calls of torch")
        # `nn.Parameter(x)`, `x.data`: x's memory, another tensor
        return self._by_memory[reference.memory].as_strided(*reference.place)

    def _now(self, value: Any) -> Any:
        if isinstance(value, _Reference):
            return self.of(value)
        is_meta = (isinstance(value, torch.device) and value.type == "meta") or value == "meta"
        return torch.device("cpu") if is_meta else value


def _is_whole(tensor: Tensor) -> bool:
    """Return whether a tensor is all of its memory, and torch's own: NumPy's, for one, cannot be resized."""
    storage = tensor.untyped_storage()
    return tensor.is_contiguous() and storage.nbytes() == tensor.nbytes and storage.resizable()


@contextmanager
def _noted_trunc_normal() -> Iterator[None]:
    """Let torch's truncated normal distribution draw on the meta device, where it returns at once."""
    original = nn.init._no_grad_trunc_normal_
    nn.init._no_grad_trunc_normal_ = _trunc_normal
    try:
        yield
    finally:
        nn.init._no_grad_trunc_normal_ = original


def _trunc_normal(  # noqa: PLR0917
    tensor: Tensor, mean: float, std: float, a: float, b: float, generator: torch.Generator | None = None
) -> Tensor:
    """Do what `torch.nn.init.trunc_normal_` does, on the meta device too; the formula is its."""
    low, high = (torch.special.ndtr(torch.tensor((x - mean) / std, device="cpu")).item() for x in (a, b))
    with torch.no_grad():
        tensor.uniform_(2 * low - 1, 2 * high - 1, generator=generator)
        tensor.erfinv_()
        tensor.mul_(std * 2**0.5)
        tensor.add_(mean)
        tensor.clamp_(min=a, max=b)
    return tensor


def _references(values: Any) -> Any:
    return tree_map_only(Tensor, lambda tensor: _Reference.of(tensor) if tensor.is_meta else tensor, values)


def _memory(values: Any) -> frozenset[int]:
    return frozenset(leaf.memory for leaf in tree_leaves(values) if isinstance(leaf, _Reference))
