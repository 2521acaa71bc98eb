"""Objects that a Python program gives, under import paths, as a configuration holds nothing but text."""

import importlib
from typing import Any

MODULE = "given"  # stands for these objects in an import path

_objects: dict[str, Any] = {}


def give(thing: Any, *, name: str) -> str:
    """Return an import path of an object: its own if it has one, else one that this process alone knows.

    Args:
        thing: The object.
        name: What the path should call it.
    """
    module, path = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    if module and path and module != "__main__" and path.isidentifier():
        try:
            if getattr(importlib.import_module(module), path, None) is thing:
                return f"{module}:{path}"
        except ImportError:
            pass
    safe = "".join(letter if letter.isalnum() else "_" for letter in name)
    known = next((key for key, other in _objects.items() if other is thing), None)
    key = known or (safe if safe not in _objects else f"{safe}_{len(_objects)}")
    _objects[key] = thing
    return f"{MODULE}:{key}"


def given(path: str) -> Any | None:
    """Return the object that `give` named so; None if this process was given no such object."""
    return _objects.get(path)
