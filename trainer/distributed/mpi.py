"""Starts MPI without holding Python's lock, so that this process's other threads run meanwhile.

MPI_Init waits for all ranks, some of which may never come.
"""

import contextlib
import ctypes
import importlib
import os
import sys
from typing import Any

_THREAD_MULTIPLE = 3


def start_mpi() -> Any:
    """Return mpi4py's MPI, started with the support of threads that Horovod needs."""
    if "mpi4py.MPI" in sys.modules:
        return importlib.import_module("mpi4py.MPI")
    settings = importlib.import_module("mpi4py").rc
    if not settings.initialize:
        return importlib.import_module("mpi4py.MPI")
    ends = settings.finalize
    settings.initialize, settings.finalize = False, ends is not False
    try:
        mpi = importlib.import_module("mpi4py.MPI")
    finally:
        settings.initialize, settings.finalize = True, ends
    if not mpi.Is_initialized():
        _initialise(mpi)
    return mpi


def _initialise(mpi: Any) -> None:
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(mpi.__file__, mode=os.RTLD_NOLOAD | os.RTLD_NOW)  # and the MPI that it needs
        provided = ctypes.c_int()
        library.MPI_Init_thread(None, None, _THREAD_MULTIPLE, ctypes.byref(provided))
    if not mpi.Is_initialized():
        mpi.Init_thread()
