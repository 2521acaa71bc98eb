"""What every tensor of a forward depends on."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.multiprocessing.reductions import StorageWeakRef

from trainer.errors import UserError
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
        # By memory: the opaque module that has made it. The weak reference keeps the address from reuse.
        self._made: dict[int, tuple[str, StorageWeakRef]] = {}
        self._weights = {memory_of(weight): path for path, weight in reversed(list(weights.items()))}

    def of(self, tensors: Iterable[Tensor]) -> Sources:
        """Return what some tensors depend on."""
        return NONE.union(*(self._of(tensor) for tensor in tensors))

    def mark(self, values: Any, kind: str, number: int) -> None:
        """Note that the tensors in some values are a source."""
        for part, tensor in enumerate(tensors_in(values)):
            self._note(tensor, frozenset([Source(kind, number, part)]))

    def inside(self, path: str) -> "KernelMode":
        """Return the mode for the inside of an opaque module."""
        return _Inside(self, path)

    def made(self, tensor: Tensor, path: str) -> None:
        """Note that a module has made a tensor, which it may or may not return."""
        memory = memory_of(tensor)
        if memory not in self._sources and memory not in self._made:
            self._made[memory] = path, StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]

    def refuse_hidden(self, tensor: Tensor, reader: str) -> None:
        """Refuse a tensor that another module has made and not returned: it does not cross a cut.

        Args:
            tensor: What is read.
            reader: The path of the module that reads it, or empty outside of modules.

        Raises:
            UserError: It is one.
        """
        memory = memory_of(tensor)
        if memory in self._sources or memory in self._weights or memory not in self._made:
            return
        path, reference = self._made[memory]
        if path != reader and not reference.expired():  # type: ignore[no-untyped-call]
            who = reader or "what the forward does outside of model.blocks"
            raise UserError(
                f"{who} reads a tensor that {path} made but did not return in tensors, tuples, lists or "
                "dicts: what it keeps in an attribute, or in an object of another kind, does not reach other "
                "stages; return it as a tensor"
            )

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
        self.refuse_hidden(tensor, "")
        return self._sources.get(memory, NONE)

    def _note(self, tensor: Tensor, sources: Sources) -> None:
        self._kept.append(tensor)
        self._sources[memory_of(tensor)] = sources


class _Inside(KernelMode):
    """Notes what an opaque module makes.

    Args:
        flow: Where.
        path: The path of the module.
    """

    def __init__(self, flow: Flow, path: str) -> None:
        super().__init__()
        self._flow = flow
        self._path = path

    def run(self, kernel: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a kernel, refuse what it should not read, and note its results."""
        for tensor in tensors_in((args, kwargs)):
            self._flow.refuse_hidden(tensor, self._path)
        result = kernel(*args, **kwargs)
        for tensor in tensors_in(result):
            self._flow.made(tensor, self._path)
        return result
