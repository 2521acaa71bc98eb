"""Custom code, by import path: `package.module:callable`."""

import difflib
import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from trainer.config.given import MODULE, given
from trainer.errors import UserError


def load(target: str, key: str) -> Any:
    """Return the callable that `target` names, such as "my_package.my_module:my_function".

    Python finds the module as it finds any other: in the working directory, on PYTHONPATH, or installed.

    Args:
        target: A module, a colon, and a name in it; the name may have dots ("module:Class.method").
        key: The dotted key of the configuration that holds the target, for messages.

    Raises:
        UserError: The target is badly formed, does not import, or is not callable.
    """
    module_name, colon, path = target.partition(":")
    if not colon or not module_name or not path:
        raise UserError(f"{key}={target} is not an import path: write package.module:callable")
    if module_name == MODULE:
        return _given(path, target, key)
    if str(Path.cwd()) not in sys.path and "" not in sys.path:
        sys.path.append(str(Path.cwd()))  # `python -m` has it, an installed command has not
    found: Any = _import(module_name, target, key)
    for name in path.split("."):
        if not hasattr(found, name):
            near = difflib.get_close_matches(name, dir(found), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(f"{key}={target}: {module_name!r} has no {name!r}{hint}")
        found = getattr(found, name)
    if not callable(found):
        raise UserError(f"{key}={target} is {type(found).__name__}, not something to call")
    return found


def call(function: Callable[..., Any], path: str, key: str, /, *arguments: Any, **options: Any) -> Any:
    """Return `function(*arguments, **options)`, or raise a UserError if it does not take these.

    Args:
        function: What `load` returned.
        path: Its import path, for messages.
        key: The dotted key of the configuration that holds the path, such as "model.target"; the options are
            beside it.
        arguments: What the trainer passes.
        options: What the configuration passes.
    """
    try:
        signature = inspect.signature(function)
    except ValueError:  # some functions written in C have none
        return function(*arguments, **options)
    try:
        signature.bind(*arguments, **options)
    except TypeError as error:
        raise UserError(
            f"{key.rpartition('.')[0]}.options do not fit {key}={path}, which takes {signature}: {error}"
        ) from error
    return function(*arguments, **options)


def _given(path: str, target: str, key: str) -> Any:
    thing = given(path)
    if thing is None:
        raise UserError(
            f"{key}={target}: the run was started from Python, with an object that has no import path; give "
            "its path, as package.module:callable"
        )
    return thing


def _import(module_name: str, target: str, key: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise UserError(
                f"{key}={target}: there is no module {error.name!r} in the working directory, on "
                "PYTHONPATH or installed"
            ) from error
        raise UserError(f"{key}={target}: importing {module_name!r} failed: {error}") from error
    except Exception as error:
        raise UserError(
            f"{key}={target}: importing {module_name!r} failed: {type(error).__name__}: {error}"
        ) from error
