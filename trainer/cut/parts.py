"""A segment's copy of the model: what the segment computes with has values, the rest has shapes.

The blocks of other segments are shared by all copies, so that many segments of a deep model take little
memory. A layer registers what is its own under the model's own names.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only

from trainer.cut.analysis import Cuts
from trainer.cut.answers import on_meta, stand_in
from trainer.models.all_steps import on_meta_device

_MOST_KNOWN = (
    16  # kinds of arguments of each module whose outputs are remembered; then the oldest is forgotten
)


class Part:
    """A model in which one segment has modules of its own.

    Args:
        model: The copy.
        skeleton: What it is a copy of, entirely on the meta device.
        cuts: What crosses the cuts.
        segment: Which segment, from 0.

    Attributes:
        model: The copy.
        cuts: What crosses the cuts.
        segment: Which segment.
        blocks: Its blocks.
        outer: Its outer modules.
        modules: The paths of the modules that the segment calls.
        weights: The paths of the parameters that it reads outside of modules.
    """

    def __init__(self, model: nn.Module, skeleton: nn.Module, cuts: Cuts, segment: int) -> None:
        self.model = model
        self._skeleton = skeleton
        self.cuts = cuts
        self.segment = segment
        self.blocks = [model.get_submodule(path) for path in cuts.blocks]
        self.outer = [model.get_submodule(path) for path in cuts.outer]
        paths = zip((*cuts.blocks, *cuts.outer), (*self.blocks, *self.outer), strict=True)
        self._originals = {module: skeleton.get_submodule(path) for path, module in paths}
        self._shapes: dict[Any, tuple[list[Any], Any]] = {}
        self.modules = cuts.modules(segment)
        called = tuple(f"{path}." for path in self.modules)
        self.weights = [path for path in cuts.weights(segment) if not path.startswith(called)]

    @classmethod
    def of(cls, skeleton: nn.Module, cuts: Cuts, segment: int) -> "Part":
        """Return a segment's copy of a model on the meta device."""
        return cls(copy.deepcopy(skeleton, _shared(skeleton, cuts, segment)), skeleton, cuts, segment)

    def copy(self, memo: dict[int, Any]) -> "Part":
        """Return a copy, for `copy.deepcopy`."""
        memo |= {id(module): module for module in self.blocks if self._originals[module] is module}
        return Part(copy.deepcopy(self.model, memo), self._skeleton, self.cuts, self.segment)

    def shapes_of(
        self, module: nn.Module, own: Callable[..., Any], args: Any, kwargs: Any, half: torch.dtype | None
    ) -> tuple[list[Any], Any]:
        """Return what a module would return, flattened, on the meta device.

        There, autocast has no effect. So the module computes in float32; what it returns is in half precision
        then, as is all that passes between layers.

        Args:
            module: A block or an outer module.
            own: Its forward.
            args: Its arguments.
            kwargs: Its keyword arguments.
            half: The type that autocast computes in; None: it is off.
        """
        key = half, module, tuple(map(_kind, tree_leaves((args, kwargs))))
        if key not in self._shapes:
            if len(self._shapes) >= _MOST_KNOWN * len(self._originals):
                self._shapes.pop(next(iter(self._shapes)))
            original = self._originals[module]
            function = own if original is module else original  # the others' forwards answer
            args, kwargs = _converted(on_meta((args, kwargs)), half, torch.float32)
            with _disable_current_modes(), on_meta_device(), torch.no_grad():
                returned = _converted(function(*args, **kwargs), torch.float32, half)
            self._shapes[key] = tree_flatten(returned)
        return self._shapes[key]

    def own(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors that need values, by path: the segment's modules', and constants around them."""
        others = {id(module) for module in (*self.blocks, *self.outer)}
        others -= {id(self.model.get_submodule(path)) for path in self.modules}

        def walk(module: nn.Module, prefix: str, inside: bool) -> Iterator[tuple[str, Tensor]]:
            for name, tensor in _tensors_of(module):
                if inside or not isinstance(tensor, nn.Parameter) or prefix + name in self.weights:
                    yield prefix + name, tensor
            for name, child in module._modules.items():
                if child is not None and id(child) not in others:
                    path = prefix + name
                    yield from walk(child, f"{path}.", inside or path in self.modules)

        yield from walk(self.model, "", False)
        for path in self.weights:  # of a module that another segment calls
            module, _, name = path.rpartition(".")
            if any(id(each) in others for each in _above(self.model, module)):
                yield path, self.model.get_submodule(module)._parameters[name]  # type: ignore[misc]

    def fill(self, values: dict[str, Tensor]) -> None:
        """Give tensors values, by path; those that are one tensor get one."""
        made: dict[int, Tensor] = {}
        for path, tensor in list(self.own()):
            module, _, name = path.rpartition(".")
            if id(tensor) not in made:
                made[id(tensor)] = _like(tensor, values[path])
            _set(self.model.get_submodule(module), name, made[id(tensor)])

    def register(self, layer: nn.Module) -> None:
        """Register the segment's modules, and the weights that it reads outside of them, with the layer."""
        for path in self.modules:
            holder, name = _holder(layer, path)
            holder.add_module(name, self.model.get_submodule(path))
        for path in self.weights:
            module, _, name = path.rpartition(".")
            holder, name = _holder(layer, path)
            holder.register_parameter(name, self.model.get_submodule(module)._parameters[name])
        if self.segment == 0:  # saved with the first layer, whatever reads them
            persistent = self.model.state_dict(keep_vars=True)
            for path, tensor in self.own():
                if path in persistent and not isinstance(tensor, nn.Parameter) and not self._within(path):
                    holder, name = _holder(layer, path)
                    holder.register_buffer(name, tensor)
        self._stand_in(torch.device("meta"))

    def apply(self, function: Callable[[Tensor], Tensor], layer: nn.Module) -> None:
        """Move what is not registered with the layer, and find what is."""
        for path, tensor in list(self.own()):
            if self._within(path):
                continue
            module, _, name = path.rpartition(".")
            registered = path in self.weights or (self.segment == 0 and _has_buffer(layer, path))
            value = _get(layer, path) if registered else function(tensor)
            _set(self.model.get_submodule(module), name, value)
        self._stand_in(function(torch.zeros(())).device)

    def _within(self, path: str) -> bool:
        return path.startswith(tuple(f"{module}." for module in self.modules))

    def _stand_in(self, device: torch.device) -> None:
        """Let code before the segment read weights that the segment does not own."""
        for path in {s.name for reads in self.cuts.reads for s in reads if s.kind == "weight"}:
            if path in self.weights or self._within(path):
                continue
            module, _, name = path.rpartition(".")
            owner = self.model.get_submodule(module)
            weight = owner._parameters[name]
            assert weight is not None
            owner._parameters[name] = nn.Parameter(stand_in(weight.shape, weight.dtype, device))


def tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a module by path: parameters, buffers and plain attributes; all names of each."""
    for prefix, part in module.named_modules(remove_duplicate=False):
        for name, tensor in _tensors_of(part):
            yield f"{prefix}.{name}" if prefix else name, tensor


def _tensors_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for held in (module._parameters, module._buffers, vars(module)):
        for name, tensor in held.items():
            if isinstance(tensor, Tensor):
                yield name, tensor


def _shared(skeleton: nn.Module, cuts: Cuts, segment: int) -> dict[int, Any]:
    """Return what a segment's copy shares with all others, as `copy.deepcopy` takes it."""
    read = {source.name for reads in cuts.reads for source in reads if source.kind == "weight"}
    return {
        id(skeleton.get_submodule(path)): skeleton.get_submodule(path)
        for number, path in enumerate(cuts.blocks)
        if number != segment - 1 and not any(name.startswith(f"{path}.") for name in read)
    }


def _above(model: nn.Module, path: str) -> Iterator[nn.Module]:
    parts = path.split(".") if path else []
    for number in range(len(parts) + 1):
        yield model.get_submodule(".".join(parts[:number]))


def _like(tensor: Tensor, value: Tensor) -> Tensor:
    """Return a value as the same kind of tensor, with its attributes."""
    if isinstance(tensor, nn.Parameter):
        value = nn.Parameter(value, requires_grad=tensor.requires_grad)
    vars(value).update(vars(tensor))
    return value


def _get(module: nn.Module, path: str) -> Tensor:
    parent, _, name = path.rpartition(".")
    tensor: Tensor = getattr(module.get_submodule(parent), name)
    return tensor


def _has_buffer(module: nn.Module, path: str) -> bool:
    try:
        module.get_buffer(path)
    except AttributeError:
        return False
    return True


def _set(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a tensor where another is; through `register_...` where parameters and buffers are noticed."""
    if name in module._parameters:
        module.register_parameter(name, tensor)  # type: ignore[arg-type]
    elif name in module._buffers:
        persistent = name not in module._non_persistent_buffers_set
        module.register_buffer(name, tensor, persistent=persistent)
    else:
        vars(module)[name] = tensor


def _holder(layer: nn.Module, path: str) -> tuple[nn.Module, str]:
    """Return the module within a layer that holds the end of a path, made if it is not there."""
    *above, name = path.split(".")
    for part in above:
        if part not in layer._modules:
            layer.add_module(part, nn.Module())
        layer = layer.get_submodule(part)
    return layer, name


def _kind(leaf: Any) -> Any:
    """Return what of an argument the shapes of outputs may follow from."""
    if isinstance(leaf, Tensor):
        return tuple(leaf.shape), leaf.dtype
    return leaf if isinstance(leaf, (bool, int, float, str, type(None), torch.dtype)) else type(leaf)


def _converted(values: Any, one: torch.dtype | None, other: torch.dtype | None) -> Any:
    """Return nested values whose tensors of one type are of another; as they are if either is None."""
    if one is None or other is None:
        return values
    return tree_map_only(Tensor, lambda tensor: tensor.to(other) if tensor.dtype is one else tensor, values)
