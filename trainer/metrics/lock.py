"""A lock on a run's folder: two live runs would mix their metrics and rename each other's checkpoints.

The kernel holds the lock: it vanishes with its process, even after `kill -9`, and NFS shares it between
hosts. A POSIX lock belongs to its process, so what that has forked cannot keep it alive. The file says who it
is, for the message. Where a file system has no locks, the file has to do: the lock of a process that is no
longer there, on this host, is taken over.
"""

import errno
import fcntl
import json
import os
import socket
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from trainer.errors import UserError

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_HELD = (errno.EACCES, errno.EAGAIN)
_PATIENCE = 3.0  # seconds; a run that has just been killed may still be on its way out
_PAUSE = 0.1


@dataclass(frozen=True)
class Owner:
    """The process that has a lock.

    Attributes:
        host: Its host.
        pid: Its number there.
        boot: The host's boot, for which its number counts.
        began: When it began, in clock ticks after the boot.
    """

    host: str
    pid: int
    boot: str
    began: str

    @property
    def is_alive(self) -> bool:
        """Return whether the process may still exist: on another host, always."""
        if self.host != socket.gethostname():
            return True
        return self.boot == _boot() and self.began == _began(self.pid)


class RunLock:
    """The lock on a folder, from now until `release` is called or this process ends.

    Attributes:
        release: Gives the lock back.

    Raises:
        UserError: Another process has it.
        OSError: The folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "lock.json"
        self.release: Callable[[], object] = lambda: None
        until = time.monotonic() + _PATIENCE
        while (owner := self._take()) is not None:
            if time.monotonic() > until:
                raise UserError(
                    f"run.dir={folder} belongs to another run, process {owner.pid} on {owner.host}: "
                    "give this one another run.dir, or wait until that one has ended (if it is gone, remove "
                    f"{self._path})"
                )
            time.sleep(_PAUSE)

    def _take(self) -> Owner | None:
        """Take the lock, or return who has it."""
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            owner = _read(file)
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in _HELD:
                    os.close(file)
                    return owner or Owner("a host that did not say its name", 0, "", "")
                if error.errno not in _NO_LOCKS:
                    raise
                if owner is not None and owner.is_alive and owner != _myself():
                    os.close(file)
                    return owner
            if not self._is_current(file):  # the last owner has removed it meanwhile
                os.close(file)
                return self._take()
            os.ftruncate(file, 0)
            os.pwrite(file, json.dumps(asdict(_myself())).encode(), 0)
        except OSError:
            os.close(file)
            raise
        # Also when the lock is collected or the interpreter ends.
        self.release = weakref.finalize(self, _release, self._path, file, os.getpid())
        return None

    def _is_current(self, file: int) -> bool:
        try:
            return os.path.samestat(os.fstat(file), self._path.stat())
        except FileNotFoundError:
            return False


def _release(path: Path, file: int, owner: int) -> None:
    """Give the lock back, and remove its file; a child process of its owner does neither."""
    if os.getpid() != owner:
        return
    for action in (path.unlink, partial(os.close, file)):
        with suppress(OSError):
            action()


def _read(file: int) -> Owner | None:
    """Return the owner that a lock's file names; None if it names none."""
    try:
        content: Any = json.loads(os.pread(file, 4096, 0))
        return Owner(str(content["host"]), int(content["pid"]), str(content["boot"]), str(content["began"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _myself() -> Owner:
    return Owner(socket.gethostname(), os.getpid(), _boot(), _began(os.getpid()) or "")


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _began(pid: int) -> str | None:
    """Return when a process of this host began; None if there is none of that number."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if words[0] == "Z" else words[19]  # starttime, field 22 of proc(5)
