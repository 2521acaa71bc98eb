"""A schedule of the user's own, from a file: for every worker a line, the order in which it computes.

    # Two workers, three micro-batches. Where a worker holds several stages: placement 0 1 1 0
    F0.0 F0.1 B0.0 F0.2 B0.1 B0.2
    F1.0 B1.0 F1.1 B1.1 F1.2 I1.2 W1.2

Messages, averaging and the optimizer's step follow from the order, as for schedules of the trainer's own.
"""

from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

from trainer.errors import UserError
from trainer.schedule.actions import COMPLETES, PASSES_ON, Action, Kind, Order, parse_action

_COMPUTING = {Kind.FORWARD} | PASSES_ON | COMPLETES


@dataclass(frozen=True)
class FileSchedule:
    """What a file says.

    Attributes:
        placement: The worker that holds each stage.
        micro_batches: How many the replica's step has.
        orders: Of every worker.
        digest: Of the file's text: ranks hold it against each other's.
    """

    placement: tuple[int, ...]
    micro_batches: int
    orders: tuple[Order, ...]
    digest: str


@lru_cache(maxsize=4)
def read_schedule(path: str) -> FileSchedule:
    """Return what a file says; whether it makes a step is the validator's to find out.

    Raises:
        UserError: It cannot be read, or has something that is no action.
    """
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"schedule={path} cannot be read: {error}") from error
    placement: tuple[int, ...] | None = None
    orders: list[Order] = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.partition("#")[0].split()
        try:
            if words[:1] == ["placement"]:
                placement = tuple(map(int, words[1:]))
            elif words:
                orders.append(tuple(map(_computing, words)))
        except ValueError as error:
            raise UserError(f"schedule={path}, line {number}: {error}") from None
    if not orders:
        raise UserError(f"schedule={path} has no worker: give a line of actions, such as F0.0 B0.0, for each")
    placement = tuple(range(len(orders))) if placement is None else placement
    if set(placement) != set(range(len(orders))):
        raise UserError(
            f"schedule={path} places stages on workers {', '.join(map(str, placement))}, "
            f"but has lines for {len(orders)}, which are counted from 0: every worker needs a stage"
        )
    micro_batches = 1 + max(action.micro_batch for order in orders for action in order)
    return FileSchedule(placement, micro_batches, tuple(orders), sha256(text.encode()).hexdigest())


def _computing(word: str) -> Action:
    action = parse_action(word)
    if action.kind not in _COMPUTING:
        raise ValueError(f"{word}: give F, B, I and W only; messages, averages and the step follow from them")
    return action
