"""Writes files that training can do without: a failure is reported once, and training goes on."""

import logging
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)


@contextmanager
def best_effort(path: Path) -> Iterator[None]:
    """Report the first failure to write a file, on the terminal and in the log; go on after it."""
    try:
        yield
    except OSError as error:
        _warn(str(path.absolute()), error.strerror or str(error))


@lru_cache(maxsize=256)
def _warn(path: str, problem: str) -> None:
    """Warn; the cache keeps a second warning from the terminal."""
    words = f"{path} cannot be written ({problem}): training goes on without it"
    with suppress(OSError):
        print(f"trainer: warning: {words}", file=sys.stderr, flush=True)
    _log.warning("%s", words)


def append(path: Path, text: str) -> None:
    """Append to a file: the whole text or, if the disk is full, none of it."""
    data = memoryview(text.encode("utf-8", errors="backslashreplace"))
    with best_effort(path), path.open("ab", buffering=0) as file:
        before = file.tell()
        try:
            while data:
                data = data[file.write(data) :]
        except OSError:
            with suppress(OSError):
                file.truncate(before)
            raise


def replace(path: Path, text: str) -> None:
    """Write a file."""
    with best_effort(path):
        path.write_text(text, encoding="utf-8")


def finite(value: Any) -> Any:
    """Return a value that strict JSON can hold: None in place of infinities and NaN, in lists too."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


class LogFile(logging.FileHandler):
    """The file of a process's log."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", errors="backslashreplace")
        self._broken = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (logging's name)
        """Report a failure once, without the traceback that logging prints every time."""
        error = sys.exc_info()[1]
        if self._broken or not isinstance(error, OSError):
            return
        self._broken = True  # the warning goes through the log again
        with best_effort(Path(self.baseFilename)):
            raise error
