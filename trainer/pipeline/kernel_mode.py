"""A dispatch mode in one method: the base class of modes that observe or replace kernels."""

from abc import ABC, abstractmethod
from typing import Any

from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode


class KernelMode(TorchDispatchMode, ABC):  # type: ignore[no-untyped-call]
    """Calls `run` for every kernel that torch dispatches within this context."""

    def __init_subclass__(cls) -> None:  # torch's has no types
        super().__init_subclass__()  # type: ignore[no-untyped-call]

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    @abstractmethod
    def run(self, kernel: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the results of a kernel; the mode is off while this runs."""

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call `run`."""
        return self.run(func, args, kwargs or {})
