"""Trains models that are partitioned into pipeline stages and replicated with Horovod data parallelism."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.fitting import Fitted, fit

__version__ = "0.1.0"
__all__ = ["Fitted", "fit"]


def __getattr__(name: str) -> Any:
    """Import what is asked for: the commands set up the environment before they import anything."""
    if name in __all__:
        return getattr(import_module("trainer.fitting"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
