"""Takes Open MPI's own words out of what mpirun writes; all else passes byte for byte, at once.

Open MPI puts each of its messages between two dashed lines:

    --------------------------------------------------------------------------
    mpirun noticed that process rank 1 with PID 462 on node h2 exited on signal 9 (Killed).
    --------------------------------------------------------------------------

The beginning of a line is held back for as long as it may be that of a message, and a message until its
second dashed line. If these do not come within a second, they were something else's, and pass.
"""

import re
import time
from collections.abc import Callable

from trainer.launch.words import Means, Word, explain

_DASHES = b"-" * 74 + b"\n"
_PATIENCE = 1.0  # seconds
_LONGEST = 1 << 14  # bytes of a message

# Open MPI's lines outside of such blocks, by how they begin; none says what others do not say better.
_LINE = re.compile(
    rb"mpirun: Forwarding signal \d"
    rb"|srun: cluster configuration lacks support for cpu binding"
    rb"|\[[^\s\]]+:\d+\] \d+ more process(es)? ha"
    rb"|\[[^\s\]]+:\d+\] Set MCA parameter \"orte_base_help"
    rb"|\[[^\s\]]+\]\[\[\d+,\d+\],\d+\]\[[^\s\]]*btl_tcp"
    rb"|\[[^\s\]]+:\d+\] \[\[\d+,\d+\],\d+\] ORTE_ERROR_LOG"
)
_BEGINNINGS = (
    _DASHES,
    b"mpirun: Forwarding signal ",
    b"srun: cluster configuration lacks support for cpu binding",
)
_BRACKETS = re.compile(
    rb"\[[^\s\]]*(:\d+)?"
    rb"(\]( ((\d+( [\w ]*)?)|S[\w ]*\"?\w*|\[[\d,\[\]]*( O\w*)?)?)?|\]\[[\d,\[\]]*(\[[^\s\]]*)?)?"
)


class Filter:
    """Takes what mpirun writes to its standard error, and gives what the user shall see.

    Args:
        show: Called with bytes to pass on.
        hear: Called with each message of Open MPI's that is known, and its text.
        clock: Returns seconds.
    """

    def __init__(
        self,
        show: Callable[[bytes], None],
        hear: Callable[[Word, bytes], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._show = show
        self._hear = hear
        self._clock = clock
        self._held = b""
        self._since = 0.0
        self._at_start = True  # of a line

    @property
    def patience(self) -> float | None:
        """Return after how many seconds without anything new `expire` shall be called; None: never."""
        return max(0.0, self._since + _PATIENCE - self._clock()) if self._held else None

    def feed(self, data: bytes) -> None:
        """Take what has come."""
        if not self._held:
            self._since = self._clock()
        self._held += data
        while self._held and self._handle_first():
            pass

    def expire(self) -> None:
        """Pass on what was held back in vain."""
        if self._held and self._clock() - self._since >= _PATIENCE:
            self.flush()

    def flush(self) -> None:
        """Pass on everything."""
        self._pass(len(self._held))

    def _handle_first(self) -> bool:
        """Handle the first line or message of what is held back; return False if more has to come."""
        held = self._held
        line = held.find(b"\n") + 1
        if not self._at_start:
            self._pass(line or len(held))
        elif held.startswith(_DASHES):
            return self._handle_message()
        elif _LINE.match(held) is not None:
            if not line:
                return False
            self._take(line, Word(Means.NOTHING))
        elif not line and _may_be_ours_to_hide(held):
            return False
        else:
            self._pass(line or len(held))
        return True

    def _handle_message(self) -> bool:
        held = self._held
        close = held.find(b"\n" + _DASHES, len(_DASHES) - 1)
        if close < 0:
            if len(held) > _LONGEST:
                self._pass(len(_DASHES))
            return len(held) > _LONGEST
        end = close + 1 + len(_DASHES)
        word = explain(held[len(_DASHES) : close + 1].decode(errors="replace"))
        if word is None:
            self._pass(end)
        else:
            self._take(end, word)
        return True

    def _pass(self, size: int) -> None:
        if size:
            self._show(self._held[:size])
            self._at_start = self._held[:size].endswith((b"\n", b"\r"))
            self._drop(size)

    def _take(self, size: int, word: Word) -> None:
        self._hear(word, self._held[:size])
        self._drop(size)

    def _drop(self, size: int) -> None:
        self._held = self._held[size:]
        self._since = self._clock()


def _may_be_ours_to_hide(held: bytes) -> bool:
    """Return whether the beginning of a line may be that of one of Open MPI's."""
    return any(whole.startswith(held) for whole in _BEGINNINGS) or bool(_BRACKETS.fullmatch(held))
