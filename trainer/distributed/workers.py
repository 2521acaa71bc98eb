"""Clean processes that work for this one, and share nothing with its MPI, Horovod, GPU and threads.

A worker is a fresh Python, started by an exec and not by a fork: a fork of a rank would hold its locks, its
connections and its GPU. It takes one request after another over a socket, and answers each with any number of
values. Large arrays travel in anonymous files in memory (memfd), which both processes map: nothing is copied,
and no limit on /dev/shm applies.

    rank                                       worker
    Worker("package.module:serve", argument)   answer = serve(argument)
    worker.ask(request)                        for value in answer(request):
    worker.answer()   <--- one at a time           send(value)

A worker ignores the signals that its rank handles, and dies with it: the kernel ends it at once on Linux, and
elsewhere it ends when its socket does.
"""

import contextlib
import ctypes
import importlib
import mmap
import os
import pickle
import select
import signal
import socket
import struct
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from trainer.distributed.aside import RemoteError, portable
from trainer.errors import TrainingError, UserError

Answer = Callable[[Any], Iterator[Any]]

_START = (
    "import sys; own = sys.argv[1:3]; sys.path[:] = sys.argv[3:]; "
    "from trainer.distributed.workers import serve; serve(*map(int, own))"
)
_OF_LAUNCHERS = ("OMPI_", "PMIX_", "PMI_", "PRTE_", "HYDI_")  # a worker is no rank
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_VALUE, _ERROR = "value", "error"
_HEADER = struct.Struct("<QQ")  # the length of the pickle, and of the file in memory
_LARGE = 1 << 16  # bytes of arrays, from which on they travel in a file in memory
_ALIGNED = 64  # as torch aligns its own
_PR_SET_PDEATHSIG = 1


class Worker:
    """A clean process.

    Args:
        path: The import path, "package.module:callable", of what it calls with the arguments: it returns
            what answers a request.
        arguments: Values that can be pickled.
        title: What messages call it, such as "data worker 1".

    Attributes:
        process: Its number.
    """

    def __init__(self, path: str, *arguments: Any, title: str) -> None:
        self._title = title
        self._socket, theirs = socket.socketpair()
        words = [sys.executable, "-c", _START, str(theirs.fileno()), str(os.getpid()), *sys.path]
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(_OF_LAUNCHERS)
        }
        with theirs:
            try:
                self._process = subprocess.Popen(
                    words,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,  # Ctrl-C is for the rank
                )
            except OSError as error:
                raise UserError(f"{title} cannot be started: {error}") from error
        self.process = self._process.pid
        self._end = weakref.finalize(self, _end, self._process, self._socket)
        try:
            self.ask((path, arguments))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            self.end()
            raise UserError(
                f"{title} cannot be given what it works with, which must be importable there: {error}"
            ) from error

    def fileno(self) -> int:
        """Return the descriptor that has something to read when there is an answer."""
        return self._socket.fileno()

    def ask(self, request: Any) -> None:
        """Send a request; its answers come in order.

        Raises:
            TrainingError: The process has ended.
        """
        try:
            _send(self._socket, request)
        except _ClosedError:
            raise self._death() from None

    def answer(self) -> Any:
        """Wait for a value of an answer, without spinning, and return it.

        Raises:
            TrainingError: The process has ended.
            BaseException: What the work raised; its traceback there is the cause.
        """
        try:
            kind, value, *traceback = _receive(self._socket)
        except _ClosedError:
            raise self._death() from None
        if kind == _ERROR:
            raise value from RemoteError(traceback[0])
        return value

    def end(self) -> None:
        """End the process."""
        self._end()

    def _death(self) -> TrainingError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=1.0)
        code = self._process.returncode
        how = "stopped answering" if code is None else f"ended with exit code {code}"
        if code is not None and code < 0:
            how = f"was ended by {signal.Signals(-code).name}"
        memory = "; the kernel does that where memory runs out" if code == -signal.SIGKILL else ""
        self.end()
        return TrainingError(f"{self._title} (process {self.process}) {how}{memory}")


def ready(workers: Sequence[Worker]) -> list[Worker]:
    """Wait until workers have something to say, without spinning; return those that do."""
    found: list[Worker] = select.select(workers, [], [])[0]
    return found


def _end(process: "subprocess.Popen[bytes]", connection: socket.socket) -> None:
    connection.close()
    process.kill()
    process.wait()


def serve(descriptor: int, parent: int) -> None:
    """Be a worker: answer requests until the other end of the socket is closed."""
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    _die_with(parent)
    answer: Answer | None = None
    with socket.socket(fileno=descriptor) as connection, contextlib.suppress(_ClosedError):
        while True:
            try:
                request = _receive(connection)
                if answer is None:
                    path, arguments = request
                    module, _, name = path.partition(":")
                    answer = getattr(importlib.import_module(module), name)(*arguments)
                    continue
                for value in answer(request):
                    _send(connection, (_VALUE, value))
            except _ClosedError:
                raise
            except BaseException as error:
                _send(connection, (_ERROR, *portable(error)))
                if answer is None:
                    return


class _ClosedError(Exception):
    """The other process has closed its end of the socket."""


def _die_with(parent: int) -> None:
    """Let the kernel end this process when the one that started it ends."""
    if sys.platform == "linux":
        prctl = getattr(ctypes.CDLL(None), "prctl", None)
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)


def _send(connection: socket.socket, value: Any) -> None:
    """Send a value; arrays of some size travel in a file in memory.

    Raises:
        _ClosedError: Nobody listens.
    """
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    views = [buffer.raw() for buffer in buffers]
    size = sum(_aligned(view.nbytes) for view in views)
    file = None
    if views and (size < _LARGE or not hasattr(os, "memfd_create")):
        data, size = pickle.dumps(value, protocol=5), 0
    elif views:
        data = pickle.dumps((data, [view.nbytes for view in views]), protocol=5)
        file = _file_in_memory(views, size)
    try:
        socket.send_fds(connection, [_HEADER.pack(len(data), size)], [] if file is None else [file])
        connection.sendall(data)
    except OSError as error:
        raise _ClosedError from error
    finally:
        if file is not None:
            os.close(file)


def _file_in_memory(views: Sequence[memoryview], size: int) -> int:
    """Return the descriptor of a file in memory with the content of these views, each aligned."""
    file = os.memfd_create("trainer", os.MFD_CLOEXEC)
    os.ftruncate(file, size)
    with mmap.mmap(file, size) as memory:
        start = 0
        for view in views:
            memory[start : start + view.nbytes] = view
            start += _aligned(view.nbytes)
    return file


def _receive(connection: socket.socket) -> Any:
    """Return the next value.

    Raises:
        _ClosedError: There is none, and there will be none.
    """
    header, files = bytearray(), []
    while len(header) < _HEADER.size:
        try:
            part, found, _, _ = socket.recv_fds(connection, _HEADER.size - len(header), 1)
        except OSError as error:
            raise _ClosedError from error
        header += part
        files += found
        if not part:
            raise _ClosedError
    length, size = _HEADER.unpack(header)
    data = _received(connection, length)
    if not files:
        return pickle.loads(data)
    try:
        memory = memoryview(mmap.mmap(files[0], size))
    finally:
        os.close(files[0])
    inner, sizes = pickle.loads(data)
    buffers, start = [], 0
    for length in sizes:
        buffers.append(memory[start : start + length])
        start += _aligned(length)
    return pickle.loads(inner, buffers=buffers)


def _received(connection: socket.socket, length: int) -> bytearray:
    data = bytearray(length)
    view = memoryview(data)
    while view:
        try:
            read = connection.recv_into(view)
        except OSError as error:
            raise _ClosedError from error
        if not read:
            raise _ClosedError
        view = view[read:]
    return data


def _aligned(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED
