"""What every tensor of a forward depends on."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload

from trainer.pipeline.kernel_mode import KernelMode
from trainer.pipeline.tensor_bytes import memory_of, tensors_in, written_by


class Source(NamedTuple):
    """Where numbers come from.

    Attributes:
        kind: "input" of the model, "block" or "call" (of a module outside of the blocks) for their outputs,
            "argument" for what a block is given, "weight" for a parameter that code outside of modules reads,
            "random" for drawn numbers.
        number: Which input, block or call; of random numbers, the segment that drew them.
        part: Which tensor of an output, or of a block's arguments.
        name: The path of a weight.
    """

    kind: str
    number: int = 0
    part: int = 0
    name: str = ""

    def __str__(self) -> str:
        """Return the name under which it passes between layers."""
        return f"{self.kind}.{self.number}.{self.part}"


Sources = frozenset[Source]
NONE: Sources = frozenset()


class Flow(KernelMode):
    """Follows the sources of tensors from kernel to kernel, by the memory that they are in.

    Args:
        weights: The paths of parameters.

    Attributes:
        segment: Which one the forward is in: random numbers are drawn there.
        drew: Whether random numbers were drawn since this was set to False.
        written: The sources that were written into.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.segment = 0
        self.drew = False
        self.written: Sources = NONE
        self._sources: dict[int, Sources] = {}
        self._kept: list[Tensor] = []  # memory that is freed may be used for something else
        self._weights = {memory_of(weight): path for path, weight in reversed(list(weights.items()))}

    def of(self, tensors: Iterable[Tensor]) -> Sources:
        """Return what some tensors depend on."""
        return NONE.union(*(self._of(tensor) for tensor in tensors))

    def mark(self, values: Any, kind: str, number: int) -> None:
        """Note that the tensors in some values are a source."""
        for part, tensor in enumerate(tensors_in(values)):
            self._note(tensor, frozenset([Source(kind, number, part)]))

    def run(self, kernel: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a kernel, and note what its results depend on."""
        sources = self.of(tensors_in((args, kwargs)))
        if torch.Tag.nondeterministic_seeded in kernel.tags:
            sources |= {Source("random", self.segment)}
            self.drew = True
        result = kernel(*args, **kwargs)
        written = written_by(kernel, args, kwargs)
        self.written |= self.of(written)
        for tensor in (*tensors_in(result), *written):
            self._note(tensor, self._of(tensor) | sources)
        return result

    def _of(self, tensor: Tensor) -> Sources:
        memory = memory_of(tensor)
        if memory in self._weights:
            return frozenset([Source("weight", name=self._weights[memory])])
        return self._sources.get(memory, NONE)

    def _note(self, tensor: Tensor, sources: Sources) -> None:
        self._kept.append(tensor)
        self._sources[memory_of(tensor)] = sources
