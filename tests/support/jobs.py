"""What a pool and its ranks say to each other: lines of JSON, over a connection of every rank's own."""

import json
import socket
from dataclasses import asdict, dataclass
from typing import Any

SOCKET = "TRAINER_TEST_POOL"  # the variable that names the pool's socket


@dataclass(frozen=True)
class Hello:
    """A rank that has started.

    Attributes:
        rank: Its number.
        process: Its process number.
    """

    rank: int
    process: int


@dataclass(frozen=True)
class Job:
    """What every rank of a pool is to run.

    Attributes:
        module: As in `python -m module`.
        arguments: The command's.
        folder: The working directory.
        streams: Where each rank writes its standard output and error: the beginning of the files' names.
        mutation: The mistake to put into the trainer meanwhile, a name in `tests.support.mutations`.
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
        error: What it would have printed about an error; None if it raised none.
        of_input: Whether that is a `UserError`. Any other error may leave messages under way.
        replicas: How many replicas Horovod joins in this process; 0 until it has started.
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
