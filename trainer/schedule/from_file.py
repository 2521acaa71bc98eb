"""A custom schedule from a file: a line for every worker, the order in which it computes.

    # Two workers, three micro-batches. With several stages a worker, first a line such as: placement 0 1 1 0
    F0.0 F0.1 B0.0 F0.2 B0.1 B0.2
    F1.0 B1.0 F1.1 B1.1 F1.2 I1.2 W1.2

Messages, averaging and the optimizer's step follow from the order, as for built-in schedules.
"""

from collections import Counter
from hashlib import sha256
from pathlib import Path

from trainer.errors import UserError
from trainer.schedule.actions import (
    COMPLETES_WEIGHT_GRADIENT,
    MAKES_INPUT_GRADIENT,
    Action,
    Kind,
    Order,
    parse_action,
)
from trainer.schedule.recipe import Placement, ScheduleRecipe

_COMPUTING = {Kind.FORWARD} | MAKES_INPUT_GRADIENT | COMPLETES_WEIGHT_GRADIENT


def read_recipe(path: str) -> ScheduleRecipe:
    """Return the recipe in a file; the validator finds out whether it makes a step.

    It supports one number of workers and of micro-batches, and has a digest of the file's text.

    Raises:
        UserError: The file cannot be read, or has a word that is not an action.
    """
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"schedule={path} cannot be read: {error}") from error
    placement, orders = _parse(path, text)

    return ScheduleRecipe(
        name=path,
        order=lambda *_: orders,
        place=lambda *_: placement,
        stages_per_worker=max(Counter(placement).values()),
        workers=len(orders),
        micro_batches=1 + max(action.micro_batch for order in orders for action in order),
        digest=sha256(text.encode()).hexdigest(),
    )


def _parse(path: str, text: str) -> tuple[Placement, tuple[Order, ...]]:
    """Return the worker that holds each stage, and every worker's order."""
    placement: Placement | None = None
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
    return placement, tuple(orders)


def _computing(word: str) -> Action:
    action = parse_action(word)
    if action.kind not in _COMPUTING:
        raise ValueError(f"{word}: give F, B, I and W only; messages, averages and the step follow from them")
    return action
