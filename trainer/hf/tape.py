"""Operations of a forward, noted once and repeated with other inputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._pytree import tree_flatten, tree_unflatten

from trainer.pipeline.kernel_mode import KernelMode
from trainer.pipeline.tensor_bytes import tensors_in


@dataclass(frozen=True)
class _Operation:
    """An operation, with places for tensors that are computed anew.

    Attributes:
        function: What is called.
        leaves: Its arguments, flattened.
        tree: Their structure.
        places: By place among them: the number of the tensor.
        makes: The numbers of the tensors that it returns; -1 for those that nothing needs.
    """

    function: Any
    leaves: tuple[Any, ...]
    tree: Any
    places: tuple[tuple[int, int], ...]
    makes: tuple[int, ...]


class Recorder(KernelMode):
    """Notes every operation."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def run(self, kernel: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Note an operation."""
        result = kernel(*args, **kwargs)
        self.calls.append((kernel, args, kwargs, result))
        return result


class Tape:
    """The operations that lead from some tensors to another.

    Args:
        operations: The operations.
        inputs: The numbers of the tensors that they start from.
        target: The number of the one that they lead to.
    """

    def __init__(self, operations: Sequence[_Operation], inputs: Sequence[int], target: int) -> None:
        self._operations = operations
        self._inputs = inputs
        self._target = target

    @classmethod
    def of(
        cls,
        recorder: Recorder,
        inputs: Sequence[Tensor | None],
        target: Tensor | None,
        never: Sequence[Tensor],
    ) -> "Tape | None":
        """Return the operations that lead to a tensor, or None if they cannot be repeated.

        Args:
            recorder: What has noted them.
            inputs: What they may start from, besides constants such as weights.
            target: What they lead to.
            never: What they must not depend on.
        """
        known = [tensor for tensor in inputs if tensor is not None]
        if target is None or len(known) < len(inputs):
            return None
        numbers = {id(tensor): number for number, tensor in enumerate(known)}
        needed = {id(target)} - numbers.keys()
        chosen = []
        for call in reversed(recorder.calls):
            function, args, kwargs, result = call
            made = {id(tensor) for tensor in tensors_in(result)}
            if made & needed:
                if function._schema.is_mutable:
                    return None
                chosen.append(call)
                needed |= {id(tensor) for tensor in tensors_in((args, kwargs))} - numbers.keys()
        if needed & {id(tensor) for tensor in never}:
            return None
        operations = []
        for function, args, kwargs, result in reversed(chosen):
            leaves, tree = tree_flatten((args, kwargs))
            places = [(i, numbers[id(leaf)]) for i, leaf in enumerate(leaves) if id(leaf) in numbers]
            made_here = tensors_in(result)
            for tensor in made_here:
                if id(tensor) in needed:
                    numbers.setdefault(id(tensor), len(numbers))
            makes = tuple(numbers.get(id(tensor), -1) for tensor in made_here)
            kept = tuple(None if i in dict(places) else leaf for i, leaf in enumerate(leaves))
            operations.append(_Operation(function, kept, tree, tuple(places), makes))
        return cls(operations, range(len(inputs)), numbers[id(target)]) if id(target) in numbers else None

    @torch.no_grad()
    def play(self, *inputs: Tensor) -> Tensor:
        """Return what the operations lead to from other inputs, of the same shapes."""
        known: dict[int, Tensor] = dict(zip(self._inputs, inputs, strict=True))
        for operation in self._operations:
            leaves = list(operation.leaves)
            for place, number in operation.places:
                leaves[place] = known[number]
            args, kwargs = tree_unflatten(leaves, operation.tree)
            made = operation.function(*args, **kwargs)
            for number, tensor in zip(
                operation.makes, (made,) if len(operation.makes) == 1 else made, strict=True
            ):
                known[number] = tensor
        return known[self._target]
