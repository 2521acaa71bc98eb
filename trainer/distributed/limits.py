"""Limits that a shell, a container or a batch job sets: raised where we may, named where they end a run."""

import contextlib
import errno
import resource
import sys

from trainer.errors import UserError

_FEWEST_FILES = 64  # MPI crashes with fewer than some 30, and every connection to a rank takes one

_OUT_OF_MEMORY = (
    "cannot allocate memory",
    "can't allocate memory",
    "failed to map segment",
    "std::bad_alloc",
)
_NO_THREAD = ("can't start new thread", "resource temporarily unavailable")


def prepare_process() -> None:
    """Raise what a process may raise for itself, before libraries load.

    Raises:
        UserError: The process may open too few files.
    """
    _print_in_any_locale()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if 0 <= hard < _FEWEST_FILES:
        raise UserError(
            f"this process may open {hard} files, but MPI needs at least {_FEWEST_FILES}: raise the limit "
            f"(`ulimit -n`, or nofile in /etc/security/limits.conf)"
        )


def _print_in_any_locale() -> None:
    """Print "?" for what the locale cannot, such as a model's text under LC_ALL=C, rather than fail."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")


def explain(error: BaseException) -> str | None:
    """Return which limit of the system an error is due to, and what to do; None if to none."""
    text = str(error).lower()
    if type(error).__name__ == "OutOfMemoryError":  # torch's, of a GPU
        return (
            "out of memory of the GPU: memory.recompute=full, more layout.stages or a smaller "
            "batch.micro_size need less; `python -m trainer.plan memory=...` shows what fits"
        )
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, MemoryError) or number == errno.ENOMEM or any(w in text for w in _OUT_OF_MEMORY):
        limit = _limit(resource.RLIMIT_AS, "-v", unit=1024)
        return f"out of memory{limit}: allow more, or see docs/tutorial.md, Less memory"
    if number == errno.EMFILE:
        return f"too many open files{_limit(resource.RLIMIT_NOFILE, '-n')}: raise it"
    if any(word in text for word in _NO_THREAD):
        limit = _limit(resource.RLIMIT_NPROC, "-u")
        return f"no further thread or process{limit}: allow more, or use fewer ranks or threads"
    return None


def _limit(which: int, option: str, unit: int = 1) -> str:
    """Return a limit that is set, for a message, as `ulimit` shows it."""
    soft, _ = resource.getrlimit(which)
    return "" if soft == resource.RLIM_INFINITY else f" (`ulimit {option}` is {soft // unit})"
