"""A contest: all contestants are started once and take turns, while the others' processes are suspended.

A machine's speed drifts by more than the differences to be measured. So the first contestant, the reference,
takes a turn before and after every other contestant's turn, and the result is the ratio to the mean of these
two, seconds apart. A steady drift cancels.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from trainer.bench.contestant import SOCKET
from trainer.bench.processes import signal_family

_PATIENCE = 300.0  # seconds for ranks to start, or to do the steps of a turn
_FIRST_STEPS = 2
_WARM_UP = 1  # uncounted steps at the start of a turn: a suspended process resumes with cold caches
# The process keeps freed memory, as the trainer does by itself.
_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}


@dataclass(frozen=True)
class Entry:
    """A participant.

    Attributes:
        name: Its name in the table.
        command: Starts its ranks.
        copies: How often to run the command: once if it is a launcher, otherwise once a rank.
        variables: Environment variables added to those of this process.
        required: Whether the contest fails without it; otherwise it is left out if it cannot do a step.
    """

    name: str
    command: Sequence[str]
    copies: int = 1
    variables: Mapping[str, str] = field(default_factory=dict)
    required: bool = True


@dataclass(frozen=True)
class Turn:
    """A contestant's mean times for a step.

    Attributes:
        seconds: From the common start until the last rank is done.
        cpu_seconds: Processor time of all threads of all ranks.
    """

    seconds: float
    cpu_seconds: float


@dataclass(frozen=True)
class Pair:
    """A contestant's turn and the reference's.

    Attributes:
        turn: The contestant's turn.
        reference: The mean of the reference's turns right before and right after it.
    """

    turn: Turn
    reference: Turn


class ContestError(RuntimeError):
    """A contestant did not start, or exited; the message includes its output."""


class Contestant:
    """The running ranks of an entry."""

    def __init__(self, entry: Entry, folder: Path) -> None:
        self.name = entry.name
        self._log = folder / "log.txt"
        address = str(folder / "orders")
        server = socket.socket(socket.AF_UNIX)
        server.bind(address)
        server.listen()
        server.settimeout(1.0)
        with self._log.open("wb") as log:
            self._launched = [
                subprocess.Popen(
                    entry.command,
                    env=_environment(entry, rank) | {SOCKET: address},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
                for rank in range(entry.copies)
            ]
        try:
            self._file = self._accept(server).makefile("rw")
            self.take_turn(_FIRST_STEPS)
        except BaseException:
            self._signal("kill")
            raise
        finally:
            server.close()

    def take_turn(self, steps: int) -> Turn:
        """Return the mean times of n steps.

        Raises:
            ContestError: The ranks exited.
        """
        self._signal("resume")
        try:
            self._file.write(json.dumps({"warm_up": _WARM_UP, "steps": steps}) + "\n")
            self._file.flush()
            line = self._file.readline()
        except OSError as error:
            raise self._error(str(error)) from None
        if not line:
            raise self._error("exited")
        self._signal("suspend")
        answer = json.loads(line)
        return Turn(answer["seconds"] / steps, answer["cpu_seconds"] / steps)

    def end(self) -> None:
        """Stop the ranks: ask first, then kill."""
        self._signal("resume")
        self._file.close()
        for process in self._launched:
            try:
                process.wait(10.0)
            except subprocess.TimeoutExpired:
                self._signal("kill")
                process.wait()

    def _accept(self, server: socket.socket) -> socket.socket:
        """Return the connection of rank 0."""
        until = time.monotonic() + _PATIENCE
        while time.monotonic() < until:
            try:
                connection, _ = server.accept()
            except TimeoutError:
                if any(process.poll() is not None for process in self._launched):
                    raise self._error("exited before its first step") from None
                continue
            connection.settimeout(_PATIENCE)
            return connection
        raise self._error("did not start")

    def _signal(self, method: str) -> None:
        """Suspend, resume or kill every process of the launch."""
        for launched in self._launched:
            signal_family(launched.pid, method)

    def _error(self, what: str) -> ContestError:
        self._signal("kill")
        return ContestError(f"{self.name} {what}:\n{self._log.read_text(errors='replace')[-3000:]}")


@contextmanager
def contest(entries: Sequence[Entry]) -> Iterator[list[Contestant]]:
    """Start all contestants; stop them on leaving the context.

    Raises:
        ContestError: A required contestant did not start, or could not do its first steps.
    """
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        contestants = []
        for number, entry in enumerate(entries):
            place = Path(folder) / str(number)
            place.mkdir()
            try:
                contestants.append(Contestant(entry, place))
            except ContestError as error:
                if entry.required:
                    raise
                print(
                    f"left out: {str(error).strip().splitlines()[0]} ({_last_error(str(error))})", flush=True
                )
                continue
            stack.callback(contestants[-1].end)
        yield contestants


def _last_error(text: str) -> str:
    """Return the last error line of a log."""
    errors = [line for line in text.splitlines() if "Error" in line]
    return errors[-1].strip() if errors else "no error message"


def take_turns(contestants: Sequence[Contestant], rounds: int, steps: int) -> dict[str, list[Pair]]:
    """Return each contestant's turns, one pair a round; the first contestant is the reference.

    Every other round runs in reverse order. The reference's own entry is the mean of its turns in the round.
    """
    reference, *others = contestants
    pairs: dict[str, list[Pair]] = {contestant.name: [] for contestant in contestants}
    for number in range(rounds):
        references = [reference.take_turn(steps)]
        for contestant in others if number % 2 == 0 else reversed(others):
            turn = contestant.take_turn(steps)
            references.append(reference.take_turn(steps))
            pairs[contestant.name].append(Pair(turn, _mean(references[-2:])))
        own = _mean(references)
        pairs[reference.name].append(Pair(own, own))
    return pairs


def _mean(turns: Sequence[Turn]) -> Turn:
    return Turn(fmean(turn.seconds for turn in turns), fmean(turn.cpu_seconds for turn in turns))


def _environment(entry: Entry, rank: int) -> dict[str, Any]:
    """Return the environment of an entry's process."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("OMPI_", "PMIX_"))}
    tuned = {key: value for key, value in os.environ.items() if key.startswith(("OMPI_MCA_", "OMPI_ALLOW_"))}
    programs = Path(sys.executable).parent
    path = {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(entry.copies)}
    return inherited | tuned | path | {"OMP_NUM_THREADS": "1"} | _MEMORY | ranks | dict(entry.variables)
