"""No core to spare: ranks that share one compute for longer at a time, and nothing spins while it waits.

Measured on 8 ranks of a small GPT on 2 cores, against one process that does the same work: 1.16 to 1.30
times its CPU time without these two, 1.05 to 1.10 with them.
"""

import atexit
import contextlib
import ctypes
import os
import platform
import struct
import threading
import time
from functools import lru_cache

_TURN = 30_000_000  # nanoseconds; a forward of a stage, or several
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}  # the number of Linux's system call
_RESET_ON_FORK = 1  # threads made later, such as Horovod's, have turns of the usual length

_LIBRARY = "libopen-pal.so.40"  # of every Open MPI 4
_NAP = 500e-6  # seconds
_REST = 50e-3  # seconds, at most


def request_long_time_slices() -> None:
    """Ask the kernel for longer turns of the calling thread, and not to interrupt others when it wakes.

    Every change of turns costs a refill of the core's caches. The length of a turn is a wish that Linux 6.12
    and later grant (`man sched_setattr`); older kernels, and some sandboxes, grant none of it or a part.
    """
    number = _SCHED_SETATTR.get(platform.machine())
    if number is not None and _set_attributes(number):
        return
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def _set_attributes(system_call: int) -> bool:
    """Return whether the kernel took the policy and the length of a turn."""
    layout = "=IIQiIQQQ"  # size, policy, flags, nice, priority, runtime, deadline, period
    size = struct.calcsize(layout)
    attributes = struct.pack(layout, size, os.SCHED_BATCH, _RESET_ON_FORK, 0, 0, _TURN, 0, 0)
    return bool(ctypes.CDLL(None).syscall(system_call, 0, attributes, 0) == 0)


horovod_has_work = threading.Event()  # set while Horovod's thread has something to do


@lru_cache(maxsize=1)
def sleep_in_background_threads() -> bool:
    """Let Horovod's thread sleep where it waits in MPI; return whether this MPI has a way.

    Every few milliseconds the thread meets those of the other replicas in a small all-reduce, and the first
    to come spins until the last is there. Open MPI's progress loop calls functions of low priority every
    eighth time around. Ours sleeps, on any thread but the main one, which never waits inside MPI (see
    `trainer.distributed.waiting`). While `horovod_has_work` is set it sleeps briefly; otherwise it sleeps
    until it is set: the all-reduces alone took 15 ms of every 600 from the computing. Call this once MPI has
    started.
    """
    try:
        library = ctypes.CDLL(_LIBRARY, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
        register, unregister = library.opal_progress_register_lp, library.opal_progress_unregister
    except (OSError, AttributeError):
        return False
    main = threading.get_ident()

    def nap() -> int:
        if threading.get_ident() != main:
            if horovod_has_work.is_set():
                time.sleep(_NAP)
            else:
                horovod_has_work.wait(_REST)
        return 0

    callback = ctypes.CFUNCTYPE(ctypes.c_int)(nap)
    register(callback)

    def remove() -> None:
        unregister(callback)  # refers to it, too: it lives for as long as it may be called

    atexit.register(remove)  # registered after MPI's own end, so it runs before
    return True
