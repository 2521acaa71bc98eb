"""Activations as pytrees: a flat list of tensors and a spec. No other code knows that they may be nested.

The nesting is torch's own (`torch.utils._pytree`): tuples, lists, dicts, named tuples and every class that is
registered there, such as the outputs of Hugging Face's models. More kinds of class are registered when they
are first seen: other subclasses of `dict`, other named tuples, dataclasses, and `PackedSequence`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache, partial
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

# What passes between two layers: a tensor, or tensors and plain values, nested.
Activation: TypeAlias = Any


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a receiver must know about a tensor before it arrives."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    requires_grad: bool

    @classmethod
    def of(cls, tensor: Tensor) -> "TensorSpec":
        """Return the spec of a tensor."""
        return cls(tuple(tensor.shape), tensor.dtype, tensor.requires_grad)

    @property
    def bytes(self) -> int:
        """Return the size in bytes."""
        count = self.dtype.itemsize
        for length in self.shape:
            count *= length
        return count


class _Leaf(Enum):
    TENSOR = "tensor"


# Values that are part of an activation's structure: their types tell 1, 1.0 and True apart.
_Plain: TypeAlias = tuple[type, Any]
_PLAIN = (bool, int, float, complex, str, bytes, range, slice, type(None), torch.dtype, torch.device, Enum)


class Nest:
    """How tensors and plain values nest in an activation; hashable, comparable and small to send.

    Args:
        tree: torch's spec.
        leaves: By leaf: `_Leaf.TENSOR`, or a plain value.
        kinds: The classes among the nodes that this module had to register.
    """

    __slots__ = ("_kinds", "_leaves", "_tree")

    def __init__(
        self, tree: pytree.TreeSpec, leaves: Sequence[_Leaf | _Plain], kinds: Sequence[type] = ()
    ) -> None:
        for kind in kinds:  # elsewhere, if the nest was sent here
            _register(kind)
        self._tree = tree
        self._leaves = tuple(leaves)
        self._kinds = tuple(kinds)

    def filled(self, tensors: Sequence[Tensor]) -> Activation:
        """Return the activation with these tensors."""
        left = iter(tensors)
        leaves = [next(left) if leaf is _Leaf.TENSOR else leaf[1] for leaf in self._leaves]
        return pytree.tree_unflatten(leaves, self._tree)

    def __eq__(self, other: object) -> bool:
        """Return whether the nesting, its classes and all plain values are equal."""
        if not isinstance(other, Nest):
            return False
        return self._leaves == other._leaves and self._tree == other._tree

    def __hash__(self) -> int:
        """Return a number that equal nests share."""
        return hash((len(self._leaves), self._tree.num_nodes))

    def __reduce__(self) -> tuple[Any, ...]:
        """Send the classes too, so that the receiver registers them."""
        return _received, (_packed(self._tree), self._leaves, self._kinds)

    def __repr__(self) -> str:
        """Return the activation's shape in words."""
        return f"Nest({self._tree}, {self._leaves})"


# torch's class for leaves warns of itself when it is pickled, so trees travel as tuples.
_Packed: TypeAlias = tuple[Any, Any, list[Any]] | None


def _packed(tree: pytree.TreeSpec) -> _Packed:
    return None if tree.is_leaf() else (tree.type, tree.context, [_packed(each) for each in tree.children()])


def _unpacked(tree: _Packed) -> pytree.TreeSpec:
    if tree is None:
        return _LEAF
    kind, context, children = tree
    return pytree.TreeSpec(kind, context, [_unpacked(child) for child in children])


def _received(tree: _Packed, leaves: Sequence[_Leaf | _Plain], kinds: Sequence[type]) -> Nest:
    return Nest(_unpacked(tree), leaves, kinds)


_LEAF = pytree.tree_structure(None)


# The nesting of one tensor is 0: by far the most common, and it is asked for with every layer.
TreeSpec: TypeAlias = int | Nest


@dataclass(frozen=True, slots=True)
class ActivationSpec:
    """Everything about an activation except its tensors' values; hashable, comparable and small to send."""

    nest: TreeSpec
    tensors: tuple[TensorSpec, ...]

    @property
    def bytes(self) -> int:
        """Return the size of all tensors in bytes."""
        return sum(spec.bytes for spec in self.tensors)

    @property
    def differentiable(self) -> tuple[TensorSpec, ...]:
        """Return the specs of the tensors that receive a gradient."""
        return tuple(spec for spec in self.tensors if spec.requires_grad)


def flatten(activation: Activation) -> tuple[list[Tensor], TreeSpec]:
    """Return the tensors of an activation in a fixed order, and their nesting.

    Raises:
        TypeError: It contains something other than tensors and plain values (numbers, strings, None, ...), in
            something other than what the module lists.
    """
    if isinstance(activation, Tensor):
        return [activation], 0
    leaves, tree = _leaves(activation)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    return tensors, Nest(tree, [_mark(leaf) for leaf in leaves], _registered_in(tree))


def unflatten(tensors: Sequence[Tensor], nest: TreeSpec) -> Activation:
    """Return the activation that `flatten` flattened."""
    return tensors[0] if isinstance(nest, int) else nest.filled(tensors)


def map_leaves(function: Callable[[Any], Any], activation: Activation) -> Activation:
    """Return an activation with a function applied to everything that it contains, whatever that is."""
    leaves, tree = _leaves(activation)
    return pytree.tree_unflatten([function(leaf) for leaf in leaves], tree)


def _leaves(activation: Activation) -> tuple[list[Any], pytree.TreeSpec]:
    """Flatten an activation, and register the classes that are new."""
    leaves, tree = pytree.tree_flatten(activation)
    while new := [type(leaf) for leaf in leaves if not isinstance(leaf, Tensor) and _is_container(leaf)]:
        for kind in new:
            _register(kind)
        leaves, tree = pytree.tree_flatten(activation)
    return leaves, tree


@lru_cache
def tuple_of(number: int) -> TreeSpec:
    """Return the nesting of a tuple of tensors."""
    return Nest(pytree.tree_structure((None,) * number), [_Leaf.TENSOR] * number)


def spec_of(tensors: Sequence[Tensor], nest: TreeSpec) -> ActivationSpec:
    """Return the spec of a flattened activation."""
    return ActivationSpec(nest, tuple(TensorSpec.of(tensor) for tensor in tensors))


def _mark(leaf: Any) -> _Leaf | _Plain:
    if isinstance(leaf, Tensor):
        return _Leaf.TENSOR
    if isinstance(leaf, _PLAIN):
        return type(leaf), leaf
    raise TypeError(
        f"an activation holds tensors and plain values (numbers, strings, None) in tuples, lists, dicts, "
        f"dataclasses or what is registered with torch.utils._pytree, not a {type(leaf).__name__}"
    )


_ours: list[type] = []  # the classes that this module has registered


def _is_container(leaf: Any) -> bool:
    if isinstance(leaf, (dict, tuple)):
        return isinstance(leaf, dict) or hasattr(leaf, "_fields")
    return dataclasses.is_dataclass(leaf) and not isinstance(leaf, type)


def _registered_in(tree: pytree.TreeSpec) -> list[type]:
    """Return the classes among a tree's nodes that this module has registered."""
    if not _ours or tree.is_leaf():
        return []
    below = [kind for child in tree.children() for kind in _registered_in(child)]
    return [tree.type, *below] if tree.type in _ours else below


def _register(kind: type) -> None:
    """Register a class with torch's pytrees, unless it is."""
    if kind in pytree.SUPPORTED_NODES:
        return
    _ours.append(kind)
    if issubclass(kind, PackedSequence):
        pytree.register_pytree_node(kind, _packed_parts, partial(_packed_of, kind))
    elif issubclass(kind, dict):
        pytree.register_pytree_node(kind, _items, partial(_dict_of, kind))
    elif issubclass(kind, tuple):
        pytree.register_pytree_node(kind, lambda value: (list(value), None), partial(_named_tuple_of, kind))
    else:
        pytree.register_pytree_node(kind, _fields, partial(_dataclass_of, kind))


def _packed_parts(value: PackedSequence) -> tuple[list[Any], Any]:
    # The sizes of its batches stay on the host, where kernels read them: they belong to the structure.
    return [value.data, value.sorted_indices, value.unsorted_indices], tuple(value.batch_sizes.tolist())


def _packed_of(kind: Any, parts: Any, sizes: Any) -> Any:
    data, *indices = parts
    return kind(data, torch.tensor(sizes, dtype=torch.int64), *indices)


def _items(value: dict[Any, Any]) -> tuple[list[Any], Any]:
    return list(value.values()), list(value)


def _dict_of(kind: type, parts: Any, keys: Any) -> Any:
    items = dict(zip(keys, parts, strict=True))
    return kind(**items) if dataclasses.is_dataclass(kind) else kind(items)


def _named_tuple_of(kind: Any, parts: Any, _: Any) -> Any:
    return kind._make(parts)  # not by its constructor, which may take other arguments


def _fields(value: Any) -> tuple[list[Any], Any]:
    return [getattr(value, field.name) for field in dataclasses.fields(value)], None


def _dataclass_of(kind: Any, parts: Any, _: Any) -> Any:
    made = object.__new__(kind)  # its constructor may take other arguments, or do more
    for field, part in zip(dataclasses.fields(kind), parts, strict=True):
        object.__setattr__(made, field.name, part)
    return made
