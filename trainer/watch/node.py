"""The ranks of this node, as one of them sees them: their heartbeats, and what the kernel says of them."""

import os
import select
import signal
import time
from contextlib import suppress
from dataclasses import dataclass

from trainer.distributed.heartbeat import Page, Phase, State, Waits, Word, text_of
from trainer.watch.memory import Killings
from trainer.watch.process import Work, is_busy, is_debugged, state_of, work_of
from trainer.watch.seen import GONE, Seen
from trainer.watch.stacks import Stack


@dataclass
class Neighbour:
    """A rank of this node; this one too.

    Attributes:
        number: Its slot.
        process: Its process.
        rank: Its number in the world.
        file: A descriptor that is readable once it has ended; -1 where the kernel has none.
        killings: What the kernel has killed for memory.
        stack: Its stack, once it offers it.
        gone: Whether it has ended.
        numbers: Its heartbeat, as last seen.
        still: Seconds since that changed.
        work: What it had done, and when, at the beginning of a window.
        busy: Whether it computed in the last whole window.
    """

    number: int
    process: int
    rank: int
    file: int
    killings: Killings
    stack: Stack | None = None
    gone: bool = False
    numbers: bytes = b""
    still: float = 0.0
    work: tuple[Work, float] | None = None
    busy: bool = True


class Node:
    """The ranks of this node.

    Args:
        page: Their heartbeats.
        host: This host's name.
    """

    def __init__(self, page: Page, host: str) -> None:
        self.host = host
        self._page = page
        self.neighbours: dict[int, Neighbour] = {}
        self._seen_at = time.monotonic()

    @property
    def slots(self) -> int:
        """Return how many ranks this node is to have."""
        return self._page.slots

    def files(self) -> list[int]:
        """Return the descriptors that are readable when a rank has ended."""
        return [each.file for each in self.neighbours.values() if each.file >= 0 and not each.gone]

    def look(self, window: float, longest: float) -> list[Neighbour]:
        """Look at all heartbeats; return the ranks that have ended since the last look.

        Args:
            window: Seconds over which computing is measured.
            longest: The most seconds since the last look that count: this process may have been stopped.
        """
        now = time.monotonic()
        passed, self._seen_at = min(now - self._seen_at, longest), now
        self._find()
        ended = []
        for each in self.neighbours.values():
            if not each.gone and self._has_ended(each):
                each.gone = True
                ended.append(each)
            numbers = bytes(self._page.slot(each.number)[8 * Word.PHASE : 8 * Word.SINCE])
            if numbers == each.numbers:
                each.still += passed
            else:
                each.numbers, each.still, each.work, each.busy = numbers, 0.0, None, True
            if each.still >= window and not each.gone:
                self._measure(each, now, window)
        return ended

    def _find(self) -> None:
        """Find ranks that have arrived."""
        for number in range(self._page.slots):
            words = self._page.words(number)
            process = words[Word.PROCESS]
            if words[Word.STATE] == State.NONE or not process:
                continue
            each = self.neighbours.get(number)
            if each is None:
                file = -1
                with suppress(OSError, AttributeError):
                    file = os.pidfd_open(process)
                rank = words[Word.RANK]
                each = Neighbour(number, process, rank, file, Killings(process))
                self.neighbours[number] = each
            if each.stack is None and words[Word.STACK] and not each.gone:
                with suppress(OSError):
                    each.stack = Stack(process, words[Word.STACK] - 1)

    def _has_ended(self, each: Neighbour) -> bool:
        if each.file >= 0:
            return bool(select.select([each.file], [], [], 0)[0])
        return not state_of(each.process)

    def _measure(self, each: Neighbour, now: float, window: float) -> None:
        """Find out whether a rank computes that makes no progress."""
        if each.work is None:
            work = work_of(each.process)
            each.work = None if work is None else (work, now)
            return
        before, since = each.work
        work = work_of(each.process) if now - since >= window else None
        if work is not None:
            phase = self._page.words(each.number)[Word.PHASE]
            saves = phase in (Phase.SAVE, Phase.REPORT, Phase.LOAD)
            lenient = phase not in (Phase.TRAIN, Phase.UPDATE)
            each.busy = is_busy(before, work, now - since, saves=saves, lenient=lenient)
            each.work = (work, now)

    def seen(self) -> list[Seen]:
        """Return what the ranks do."""
        return [self.see(each) for each in list(self.neighbours.values())]

    def see(self, each: Neighbour) -> Seen:
        """Return what a rank does, or did at its end."""
        words = self._page.words(each.number)
        joined = tuple(words[Word.JOINED : Word.JOINED + 3])
        state = "" if each.gone else state_of(each.process)
        return Seen(
            rank=each.rank,
            host=self.host,
            state=state or GONE,
            still=each.still,
            busy=each.busy or state == "R",  # it would compute, if others let it
            debugged=bool(words[Word.DEBUGGED]) or is_debugged(each.process),
            phase=Phase(words[Word.PHASE]),
            step=words[Word.STEP],
            number=words[Word.ACTION],
            waits=Waits(words[Word.WAITS]),
            peer=words[Word.PEER],
            joined=(joined[0], joined[1], joined[2]),
            peak=words[Word.PEAK] * 1024,
            place=text_of(self._page.slot(each.number)),
        )

    def left_by_itself(self, each: Neighbour) -> bool:
        """Return whether a rank has ended on its own account, and has said why."""
        return bool(self._page.words(each.number)[Word.STATE] == State.LEAVING)

    def speaker(self, tick: float) -> int:
        """Return the slot of the rank that speaks for this node: the first whose watch still looks."""
        now = time.monotonic()
        for number in sorted(self.neighbours, key=lambda number: self.neighbours[number].rank):
            each = self.neighbours[number]
            fresh = now - self._page.times(number)[Word.TICK] < 3 * tick + 1.0
            if not each.gone and (number == self._page.own or fresh):
                return number
        return self._page.own

    def report_once(self) -> bool:
        """Return whether nobody of this node has reported why the run ends, and note that somebody has."""
        slots = range(self._page.slots)
        if any(self._page.words(number)[Word.REPORTED] for number in slots):
            return False
        for number in slots:
            self._page.words(number)[Word.REPORTED] = 1
        return True

    def reported(self) -> bool:
        """Return whether somebody of this node has reported why the run ends."""
        return any(self._page.words(number)[Word.REPORTED] for number in range(self._page.slots))

    def kill_others(self) -> None:
        """Kill the other ranks of this node, stopped ones too."""
        for each in self.neighbours.values():
            if each.process == os.getpid() or each.gone:
                continue
            with suppress(OSError):
                if each.file >= 0:  # which is the process, whatever has its number meanwhile
                    signal.pidfd_send_signal(each.file, signal.SIGKILL)
                else:
                    os.kill(each.process, signal.SIGKILL)
