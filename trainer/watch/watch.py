"""The thread of a rank that watches the ranks of its node, and reports why a run cannot go on.

[1] a neighbour has ended      without having said why: its cause is reported, once a node
[2] somebody stands still      other hosts are asked what their ranks do
[3] for too long               every rank is reported, with its stack, and all ranks are ended
[4] the launcher is gone       the ranks are ended

The threads of all ranks of a node watch, and the first one speaks: any rank may be the one that is stopped.
"""

import os
import resource
import select
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from trainer.distributed import environment, notice
from trainer.distributed.failure import resume_hint
from trainer.distributed.heartbeat import Page, Word, heartbeat
from trainer.distributed.layout import Layout
from trainer.watch.deaths import cause_of
from trainer.watch.debugger import in_debugger
from trainer.watch.ending import KILLED, STALLED, end_all, say, write_files
from trainer.watch.hosts import Hosts
from trainer.watch.node import Neighbour, Node
from trainer.watch.seen import Seen
from trainer.watch.stacks import ask_all
from trainer.watch.verdict import Limits, Verdict, judge
from trainer.watch.words import headline, stack_lines, table

_LONGEST_TICK = 1.0  # seconds between two looks
_TICKS = 16  # of a limit
_STEPS = 10  # usual ones, for which a rank may stand still at least
_BUSY_STEPS = 100  # likewise, for which it may compute
_FOR_OTHERS = 4.0  # seconds for a host with lower ranks to report and end the run
_AFTER_DEATH = 5.0  # seconds for the launcher to end what a rank's death leaves
_WITHOUT_LAUNCHER = 3.0
_ASKS_EVERY = 1.0  # seconds
_FOR_KERNEL = 0.1  # seconds for its counters
_BY_MPIRUN = (0.5, 15.0)  # seconds between its SIGCONT and the end of ranks that it ends itself
_STACK_LINES = 6


@dataclass
class Settings:
    """What the watch is told.

    Attributes:
        stall_seconds: How long nobody may make progress; 0: that is not watched.
        busy_seconds: How long one action may compute.
        usual: Seconds that a step usually takes; 0 before the first.
        layout: Who holds what.
        world: The number of ranks.
        folder: The run's; None before there is one.
        hosts: The other hosts.
    """

    stall_seconds: float = 30.0
    busy_seconds: float = 1800.0
    usual: float = 0.0
    layout: Layout | None = None
    world: int = 1
    folder: Path | None = None
    hosts: Hosts | None = None

    @property
    def limits(self) -> Limits:
        """Return how long a rank may stand still."""
        still = max(self.stall_seconds, _STEPS * self.usual)
        return Limits(still, max(self.busy_seconds, _BUSY_STEPS * self.usual))

    @property
    def tick(self) -> float:
        """Return the seconds between two looks."""
        return min(_LONGEST_TICK, self.stall_seconds / _TICKS) if self.stall_seconds else _LONGEST_TICK


@dataclass
class Watch:
    """What a rank's thread knows.

    Args:
        page: The heartbeats of the node.
        host: This host's name.
    """

    page: Page
    host: str
    settings: Settings = field(default_factory=Settings)

    def __post_init__(self) -> None:
        self.node = Node(self.page, self.host)
        self._parent = os.getppid()
        self._orphan_since: float | None = None
        self._others: dict[int, Seen] = {}
        self._asked = 0.0
        self._met: Hosts | None = None
        self._named: tuple[object, ...] = ()
        self._yielded: float | None = None
        self._ended = 0.0  # when a neighbour did

    def run(self) -> None:
        """Watch until the process ends."""
        while True:
            tick = self.settings.tick
            with suppress(OSError, ValueError):
                select.select(self.node.files(), [], [], tick)
            self._look(tick)

    def _look(self, tick: float) -> None:
        settings, now = self.settings, time.monotonic()
        heartbeat.times[Word.TICK] = now
        heartbeat.words[Word.PEAK] = _peak()
        limits = settings.limits
        for each in self.node.look(limits.still / 3, 2 * tick + 0.5):
            self._death(each)  # [1]
        if self._ended and now - self._ended > _AFTER_DEATH:
            end_all(KILLED, self.node.kill_others)
        self._look_for_launcher(now)  # [4]
        if settings.hosts is not self._met and settings.hosts is not None:
            self._met = settings.hosts
            self._ask(now)  # whether they can be asked at all
        own = self.node.neighbours.get(self.page.own)
        if own is None or not settings.stall_seconds:
            return
        heartbeat.words[Word.DEBUGGED] = own.still > limits.still / 3 and in_debugger()
        stills = [each.still for each in self.node.neighbours.values()]
        if max(stills) >= min(limits.still / 3, 3.0) and self.node.speaker(tick) == self.page.own:
            self._judge(limits, now)

    def _judge(self, limits: Limits, now: float) -> None:
        """Report what stands still, and end the run if it has for too long."""
        if now - self._asked > _ASKS_EVERY:
            self._ask(now)  # [2]
        settings = self.settings
        here = {seen.rank: seen for seen in self.node.seen()}
        everyone = {**self._others, **here}
        verdict = judge(everyone, sorted(here), limits, settings.layout, settings.world)
        if verdict is None:
            self._yielded = None
            return
        if not verdict.over:
            self._note(verdict, everyone)
        elif self._may_end(everyone, here, now) and self.node.report_once():
            self._report(verdict, everyone)  # [3]
            end_all(STALLED, self.node.kill_others)

    def _ask(self, now: float) -> None:
        if self.settings.hosts is not None:
            self._others = {seen.rank: self._placed(seen) for seen in self.settings.hosts.ask()}
            self._asked = now

    def _placed(self, seen: Seen) -> Seen:
        """Add what the layout says of a rank that cannot say it itself."""
        layout = self.settings.layout
        if "stages" in seen.place or layout is None:
            return seen
        stages, replica = layout.stages_of(layout.group_rank(seen.rank)), layout.replica(seen.rank)
        return replace(seen, place={**seen.place, "stages": stages, "replica": replica})

    def _may_end(self, everyone: dict[int, Seen], here: dict[int, Seen], now: float) -> bool:
        """Return whether no other host is to speak: the one with the lowest rank that can be reached."""
        reached = [rank for rank, seen in everyone.items() if rank in here or len(seen.state) == 1]
        if min(reached) in here:
            return True
        self._yielded = self._yielded or now
        return now - self._yielded > _FOR_OTHERS

    def _note(self, verdict: Verdict, everyone: dict[int, Seen]) -> None:
        """Print what stands still, once; only the first host does."""
        what = tuple((rank, everyone[rank].number, everyone[rank].step) for rank in verdict.causes)
        if what != self._named and min(everyone) in {each.rank for each in self.node.neighbours.values()}:
            self._named = what
            line = headline(verdict, everyone, self.settings.layout, self.settings.world)
            say([f"{line} (it may: see docs/stalls.md)"])

    def _report(self, verdict: Verdict, everyone: dict[int, Seen]) -> None:
        """Print what every rank does, where its stack is, and how the run ends."""
        settings = self.settings
        lines = [headline(verdict, everyone, settings.layout, settings.world)]
        lines += table(everyone, settings.layout, settings.world)
        stacks = ask_all(
            {each.rank: each.stack for each in self.node.neighbours.values() if each.stack and not each.gone},
            patience=1.0,
        )
        for rank in verdict.causes:
            if rank in stacks:
                lines.append(f"  rank {rank} is in")
                lines += [f"    {line}" for line in stack_lines(stacks[rank], _STACK_LINES)]
        if settings.folder is not None and stacks:
            logs = settings.folder / "logs"
            paths = {logs / f"rank{rank}.stack.txt": text for rank, text in stacks.items()}
            if written := write_files(paths):
                lines.append(f"  stacks: {', '.join(map(str, written))}")
        hint = resume_hint()
        say([*lines, f"  the run ends on all hosts with exit code {STALLED}{f'; {hint}' if hint else ''}"])

    def _death(self, each: Neighbour) -> None:
        """Report why a neighbour is gone, if it has not said so itself."""
        shortest, longest = _BY_MPIRUN
        now = time.monotonic()
        by_mpirun = shortest < now - notice.continued() < longest
        if self.node.left_by_itself(each) or self.node.reported() or by_mpirun:
            return
        self._ended = self._ended or now
        if self.node.speaker(self.settings.tick) == self.page.own and self.node.report_once():
            time.sleep(_FOR_KERNEL)
            say([cause_of(each, self.node.see(each))])

    def _look_for_launcher(self, now: float) -> None:
        """End this host's ranks if what started them is gone, and does not end them."""
        if not environment.launched() or os.getppid() == self._parent:
            return
        self._orphan_since = self._orphan_since or now
        if now - self._orphan_since < _WITHOUT_LAUNCHER:
            return
        if self.node.speaker(self.settings.tick) == self.page.own and self.node.report_once():
            hint = resume_hint()
            line = f"the launcher is gone: the ranks of host {self.host} end with exit code {STALLED}"
            say([f"{line}; {hint}" if hint else line])
        end_all(STALLED, self.node.kill_others)


def _peak() -> int:
    """Return the most memory that this process has had, in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
