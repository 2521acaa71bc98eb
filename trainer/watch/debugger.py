"""Whether somebody has this process in a debugger: then it stands still on purpose."""

import sys
import threading

_FILES = ("bdb.py", "pdb.py", "pydevd.py", "debugpy")


def in_debugger() -> bool:
    """Return whether the main thread is in a debugger of Python's."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        if any(name in frame.f_code.co_filename for name in _FILES):
            return True
        frame = frame.f_back
    return False
