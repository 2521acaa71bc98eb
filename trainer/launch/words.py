"""What Open MPI's messages on a job mean, each in one line of ours."""

import re
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum


class Means(Enum):
    """What a message of Open MPI's means for the job."""

    NOTHING = "nothing that others do not say better"
    RANK = "a rank ended the job"
    HOST = "a host is lost, or never joined"
    START = "the ranks did not start"


@dataclass(frozen=True)
class Word:
    """What a message says.

    Attributes:
        means: For the job.
        text: In one line; empty where others say it better.
        code: The exit code of the rank that it names.
        host: The host that is lost.
    """

    means: Means
    text: str = ""
    code: int | None = None
    host: str = ""


_Found = re.Match[str]

_SAME_SETUP = "install the same environment at the same path on every host"
_GOES_ON = "the job ends; start it again to go on from its newest checkpoint"


def explain(block: str) -> Word | None:
    """Return what one of Open MPI's messages says, or None if it is not known."""
    for pattern, build in _KNOWN:
        if (found := re.search(pattern, block, re.DOTALL)) is not None:
            return build(found)
    return None


def _signalled(found: _Found) -> Word:
    number = int(found["signal"])
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    text = f"rank {found['rank']} on host {found['host']} was killed by {name}"
    if number == signal.SIGKILL:
        text += ", by someone, or by the kernel for want of memory (see dmesg on that host)"
    elif number == signal.SIGBUS:
        text += ": a file that it had mapped has changed, or its file system is full"
    return Word(Means.RANK, text, 128 + number)


def _improper(found: _Found) -> Word:
    where = f"rank {found['rank']} on host {found['host']}"
    return Word(Means.RANK, f"{where} ended without a word, by exit() or os._exit(), while others went on")


def _silent(_found: _Found) -> Word:
    return Word(Means.NOTHING)


def _returned(found: _Found) -> Word:
    return Word(Means.RANK, code=int(found["code"]))


def _lost(found: _Found) -> Word:
    text = f"host {found['host']} is lost: it, or its network, has failed; {_GOES_ON}"
    return Word(Means.HOST, text, host=found["host"])


def _no_daemon(_found: _Found) -> Word:
    text = "a host is lost, or Open MPI's daemon did not start there"
    return Word(Means.HOST, f"{text}: its connection broke; {_GOES_ON}")


def _slots(found: _Found) -> Word:
    advice = "give slots with -H h1:2,h2:2, or ask for fewer ranks with -np"
    return Word(Means.START, f"the hosts have fewer than {found['slots']} slots: {advice}")


def _program(found: _Found) -> Word:
    return Word(Means.START, f"host {found['host']} cannot run {found['what'].strip()}: {_SAME_SETUP}")


def _folder(found: _Found) -> Word:
    advice = "start from a folder that all hosts have"
    return Word(Means.START, f"host {found['host']} has no folder {found['what'].strip()}: {advice}")


_OF_RANK = r"process rank (?P<rank>\d+) with PID \d+ on\s+node (?P<host>\S+)"
_OF_START = r": (?P<what>[^\n]*)\nNode: (?P<host>\S+)"
_KNOWN: Sequence[tuple[str, Callable[[_Found], Word]]] = (
    (_OF_RANK + r" exited on\s+signal (?P<signal>\d+)", _signalled),
    (_OF_RANK + r" exiting improperly", _improper),
    (r"exited with non-zero status.*Exit code:\s+(?P<code>\d+)", _returned),
    (r"^\s*Primary job +terminated normally, but", _silent),
    (r"^\s*MPI_ABORT was invoked on rank", _silent),
    (r"^\s*An MPI communication peer process has unexpectedly disconnected", _silent),
    (r"lost communication with a remote daemon.*Remote daemon:[^\n]* on node (?P<host>\S+)", _lost),
    (r"ORTE was unable to reliably start one or more daemons", _no_daemon),
    (r"An ORTE daemon has unexpectedly failed", _no_daemon),
    (r"not enough slots available in the system to satisfy the (?P<slots>\d+)", _slots),
    (r"could not access\s+or execute an executable:\s+Executable" + _OF_START, _program),
    (r"change to the specified working directory:\s+Working directory" + _OF_START, _folder),
)
