"""Calls a block alone, where the forward around it does nothing but pass tensors on.

That is usual: a loop over blocks. The arguments that depend on nothing but shapes are remembered, so masks
and rotary angles are not made again for every layer and micro-batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_unflatten

from trainer.pipeline.tensor_bytes import tensors_in


@dataclass(frozen=True)
class Direct:
    """A call of one block for inputs of one signature.

    Attributes:
        block: The block.
        leaves: Its arguments, None where a carried tensor belongs.
        places: The names of these tensors by place.
        tree: The structure of its arguments.
        handed_on: By name: which of the block's outputs it is, or which of the carried values.
    """

    block: nn.Module
    leaves: tuple[Any, ...]
    places: Mapping[int, str]
    tree: Any
    handed_on: Mapping[str, int | str]

    @classmethod
    def of(
        cls,
        block: nn.Module,
        leaves: Sequence[Any],
        tree: Any,
        *,
        carried: Mapping[str, Any],
        returned: Mapping[str, Tensor],
        output: Mapping[str, Any],
    ) -> "Direct | None":
        """Return the direct call that a rehearsal shows, or None if something is computed around the block.

        Args:
            block: The block.
            leaves: Its arguments in that forward.
            tree: Their structure.
            carried: What the layer was given.
            returned: What its modules answered.
            output: What it handed on.
        """
        names = {id(value): name for name, value in carried.items() if isinstance(value, Tensor)}
        made = {
            id(tensor): int(name.rpartition(".")[2])
            for name, tensor in returned.items()
            if name.startswith("block.")
        }
        where: dict[str, int | str] = {}
        for name, value in output.items():
            if not isinstance(value, Tensor):
                where[name] = name
            elif id(value) in made:
                where[name] = made[id(value)]
            elif id(value) in names:
                where[name] = names[id(value)]
            else:
                return None
        places = {
            place: names[id(leaf)]
            for place, leaf in enumerate(leaves)
            if isinstance(leaf, Tensor) and id(leaf) in names
        }
        kept = tuple(None if place in places else leaf for place, leaf in enumerate(leaves))
        return cls(block, kept, places, tree, where)

    def __call__(self, carried: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the layer hands on."""
        leaves = list(self.leaves)
        for place, name in self.places.items():
            leaves[place] = carried[name]
        args, kwargs = tree_unflatten(leaves, self.tree)
        made = tensors_in(self.block(*args, **kwargs))
        return {
            name: made[where] if isinstance(where, int) else carried[where]
            for name, where in self.handed_on.items()
        }
