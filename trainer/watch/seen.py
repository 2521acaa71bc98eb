"""What is known of a rank, from its heartbeat, from the kernel, or from another host."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trainer.distributed.heartbeat import Phase, Waits
from trainer.schedule.actions import Action
from trainer.schedule.coding import action_of

GONE, SILENT, CUT, UNKNOWN = "gone", "silent", "cut", "unknown"


@dataclass(frozen=True)
class Seen:
    """A rank at a moment.

    Attributes:
        rank: Its number in the world.
        host: The name of its host.
        state: The kernel's letter for its process; or GONE; SILENT, if its host answers and it does not; CUT,
            if its host does not; UNKNOWN, if the hosts cannot ask one another.
        still: Seconds without progress.
        busy: Whether its process computes or writes.
        debugged: Whether a debugger holds it.
        phase: What it does, where no action says.
        step: The step that it is in, or 0.
        number: Its action's number.
        waits: For whom it waits, where its action does not say.
        peer: The rank that it waits for, with `Waits.RANK`.
        joined: How many collective calls it has joined, with all ranks, its pipeline, its replicas.
        peak: The most memory that it has had, in bytes.
        place: What it holds, in words for messages: keys "stage", "replica", "layers", "memory", "mapped".
    """

    rank: int
    host: str
    state: str = "S"
    still: float = 0.0
    busy: bool = False
    debugged: bool = False
    phase: Phase = Phase.START
    step: int = 0
    number: int = 0
    waits: Waits = Waits.NOBODY
    peer: int = -1
    joined: tuple[int, int, int] = (0, 0, 0)
    peak: int = 0
    place: Mapping[str, Any] = field(default_factory=dict)

    @property
    def action(self) -> Action | None:
        """Return what it does by its schedule, if it is in one."""
        return action_of(self.number)

    def plain(self) -> dict[str, Any]:
        """Return the same as plain values, to send."""
        return {**vars(self), "place": dict(self.place), "phase": int(self.phase), "waits": int(self.waits)}

    @classmethod
    def of(cls, values: dict[str, Any]) -> "Seen":
        """Return what `plain` returned there.

        Raises:
            TypeError: It is of another version.
            ValueError: Likewise.
        """
        joined = tuple(values.pop("joined"))
        phase, waits = Phase(values.pop("phase")), Waits(values.pop("waits"))
        return cls(**values, phase=phase, waits=waits, joined=joined)
