"""Messages between a pool and its ranks: lines of JSON, over one connection per rank."""

import json
import socket
from dataclasses import asdict, dataclass
from typing import Any

SOCKET = "TRAINER_TEST_POOL"  # the variable that names the pool's socket


@dataclass(frozen=True)
class Hello:
    """Sent by a rank when it has started.

    Attributes:
        rank: Its number.
        process: Its process number.
    """

    rank: int
    process: int


@dataclass(frozen=True)
class Job:
    """A command that every rank of a pool runs.

    Attributes:
        module: As in `python -m module`.
        arguments: The command's arguments.
        folder: The working directory.
        streams: The path prefix of the files for each rank's standard output and error.
        mutation: The mistake to put into the trainer for this job: a name in `tests.support.mutations`.
    """

    module: str
    arguments: list[str]
    folder: str
    streams: str
    mutation: str | None = None

    def stream(self, name: str, rank: int) -> str:
        """Return the file that a rank's "out" or "err" goes to."""
        return f"{self.streams}-{name}-{rank}.txt"


@dataclass(frozen=True)
class Report:
    """How a job ended on one rank.

    Attributes:
        code: The exit code that the command would have ended with.
        error: The error text that it would have printed; None without an error.
        of_input: Whether the error is a `UserError`. Any other error may leave messages in flight.
        replicas: The number of replicas that Horovod joins in this process; 0 until it starts.
    """

    code: int
    error: str | None = None
    of_input: bool = False
    replicas: int = 0


class Line:
    """One end of a connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._file = connection.makefile("rw")

    def write(self, message: Hello | Job | Report) -> None:
        """Send a message.

        Raises:
            OSError: The other end is gone.
        """
        self._file.write(json.dumps(asdict(message)) + "\n")
        self._file.flush()

    def read(self) -> dict[str, Any] | None:
        """Return the next message's fields; None where the other end is gone."""
        try:
            line = self._file.readline()
        except OSError:
            return None
        return json.loads(line) if line.endswith("\n") else None

    def close(self) -> None:
        """Hang up."""
        self._file.close()
        self.connection.close()
