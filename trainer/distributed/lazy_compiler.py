"""Keeps torch's compiler out of a process that compiles nothing: its import takes as long as that of torch.

Torch's optimizers, dispatch modes and meta device import the compiler when they are first used, only to hide
from it: they tell it to leave a function alone (`disable`), or not to compile across a line (`graph_break`).
Until something is compiled, there is nothing to hide from.
"""

import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

import torch

_COMPILER = "torch._dynamo"


def postpone_compiler() -> None:
    """Import torch's compiler when something needs it, and not before.

    Until then, a module stands in for it that answers those who only hide. Any other use of it, such as
    `torch.compile`, imports the compiler.
    """
    if _COMPILER not in sys.modules:
        stand_in = _StandIn()
        sys.modules[_COMPILER] = torch._dynamo = stand_in
        sys.meta_path.insert(0, _Submodules(stand_in))


class _StandIn(ModuleType):
    """Stands in for the compiler until that is imported."""

    def __init__(self) -> None:
        super().__init__(_COMPILER)
        self.__spec__ = PathFinder.find_spec(_COMPILER, torch.__path__)
        self.__path__: list[str] = []  # a package: its submodules are imported by `_Submodules`

    def disable(self, *args: Any, **kwargs: Any) -> Any:
        """Return a function that runs uncompiled; a decorator of other packages gets the compiler's own."""
        if kwargs.get("wrapping", True):
            return self.compiler().disable(*args, **kwargs)
        function, hidden = args[0], None

        def run(*of_function: Any, **named: Any) -> Any:
            nonlocal hidden
            if self.stands_in:
                return function(*of_function, **named)
            if hidden is None:
                hidden = self.compiler().disable(*args, **kwargs)
            return hidden(*of_function, **named)

        return run

    def graph_break(self) -> None:
        """Do nothing, as the compiler does where nothing is compiled."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked by tools that look at all modules
            raise AttributeError(name)
        return getattr(self.compiler(), name)

    @property
    def stands_in(self) -> bool:
        """Return whether the compiler has not been imported yet."""
        return sys.modules.get(_COMPILER) is self

    def compiler(self) -> Any:
        """Return the compiler, which takes the place of this module."""
        if self.stands_in:
            del sys.modules[_COMPILER]
        return import_module(_COMPILER)


class _Submodules(MetaPathFinder):
    """Imports the compiler before the first of its submodules."""

    def __init__(self, stand_in: _StandIn) -> None:
        self._stand_in = stand_in

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Return how to import a submodule; None to let others find it."""
        if not (fullname.startswith(f"{_COMPILER}.") and self._stand_in.stands_in):
            return None
        compiler = self._stand_in.compiler()
        if fullname in sys.modules:  # if it stayed there, the import system would execute it again
            return ModuleSpec(fullname, _Imported(sys.modules.pop(fullname)))
        return PathFinder.find_spec(fullname, compiler.__path__)


class _Imported(Loader):
    """Yields a module that importing its package has imported."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def exec_module(self, module: ModuleType) -> None:
        """Take the place of a module that was to be executed, as the import system allows."""
        sys.modules[module.__name__] = self._module
