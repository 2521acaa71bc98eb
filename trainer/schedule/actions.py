"""The vocabulary of schedules: an action, and an ordered list of actions for every worker of a group.

A schedule is plain data. One and the same list is validated, simulated, drawn and executed.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """What a worker does. The value is the short name that files, drawings and error messages use."""

    __hash__ = object.__hash__  # Enum hashes the name, in Python: half the time of a simulation

    FORWARD = "F"
    BACKWARD = "B"  # whole: gradients of the inputs and of the weights
    BACKWARD_INPUT = "I"  # the part of a backward that the previous stage waits for
    BACKWARD_WEIGHT = "W"  # the rest of it, which no stage waits for
    SEND_ACTIVATION = "sa"
    RECEIVE_ACTIVATION = "ra"
    SEND_GRADIENT = "sg"
    RECEIVE_GRADIENT = "rg"
    SEND_TIED_GRADIENT = "st"  # a use's gradient of a tied parameter, to the owner
    RECEIVE_TIED_GRADIENT = "rt"  # and added there to the owner's, in layer order
    REDUCE_START = "A"  # start averaging the stage's gradients over the replicas
    REDUCE_WAIT = "Aw"  # wait until they are averaged
    SEND_REDUCED_GRADIENT = "sR"  # the owner's averaged gradient, back to a use
    RECEIVE_REDUCED_GRADIENT = "rR"
    UPDATE = "U"  # clip, then step the optimizer
    SAMPLE = "S"  # sample the next token from the last stage's output
    SEND_TOKEN = "sk"
    RECEIVE_TOKEN = "rk"


# The receiving end of a message, by its sending end.
RECEIVE_OF = {
    Kind.SEND_ACTIVATION: Kind.RECEIVE_ACTIVATION,
    Kind.SEND_GRADIENT: Kind.RECEIVE_GRADIENT,
    Kind.SEND_TIED_GRADIENT: Kind.RECEIVE_TIED_GRADIENT,
    Kind.SEND_REDUCED_GRADIENT: Kind.RECEIVE_REDUCED_GRADIENT,
    Kind.SEND_TOKEN: Kind.RECEIVE_TOKEN,
}
SENDS = frozenset(RECEIVE_OF)
# Kinds that make the gradient that the previous stage waits for, and that complete a micro-batch's gradients.
MAKES_INPUT_GRADIENT = frozenset({Kind.BACKWARD, Kind.BACKWARD_INPUT})
COMPLETES_WEIGHT_GRADIENT = frozenset({Kind.BACKWARD, Kind.BACKWARD_WEIGHT})
RECEIVES = frozenset(RECEIVE_OF.values())


@dataclass(frozen=True, slots=True)
class Action:
    """One thing that a worker does.

    Attributes:
        kind: What the worker does.
        stage: The stage that it does it for.
        micro_batch: The micro-batch, counted from 0 within the replica's step; -1 if there is none.
        peer: The stage at the other end of a message; -1 if there is none.
    """

    kind: Kind
    stage: int
    micro_batch: int = -1
    peer: int = -1

    def __str__(self) -> str:
        """Return a text such as `F2.5` (forward of stage 2, micro-batch 5) or `sa2.5>3`."""
        micro_batch = f".{self.micro_batch}" if self.micro_batch >= 0 else ""
        peer = "" if self.peer < 0 else f"{'>' if self.kind in SENDS else '<'}{self.peer}"
        return f"{self.kind.value}{self.stage}{micro_batch}{peer}"


Order = tuple[Action, ...]  # what one worker computes, without messages
Work = Mapping[Kind, Sequence[float]]  # seconds of an action, by kind and stage

_ACTION = re.compile(r"([a-zA-Z]+)(\d+)(?:\.(\d+))?(?:[<>](\d+))?")


def parse_action(text: str) -> Action:
    """Return the action that has this text, the inverse of `str`.

    Raises:
        ValueError: The text is not an action.
    """
    match = _ACTION.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not an action such as F2.5, sa2.5>3 or A2")
    kind, stage, micro_batch, peer = match.groups()
    action = Action(Kind(kind), int(stage), int(micro_batch or -1), int(peer or -1))
    if str(action) != text:
        raise ValueError(f"{text!r} is not an action: is it {action}?")
    return action


@dataclass(frozen=True)
class Tied:
    """Two stages (or one stage twice) that hold the same parameter: its owner, and one that uses it again."""

    owner: int
    use: int


@dataclass(frozen=True)
class Schedule:
    """An ordered list of actions for every worker of a group.

    Attributes:
        name: What the user calls it.
        placement: The worker that holds each stage.
        micro_batches: The number of micro-batches in the replica's step.
        workers: The list of each worker.
        texts: Where tokens are generated: the text that each micro-batch continues. None: there is one.
    """

    name: str
    placement: tuple[int, ...]
    micro_batches: int
    workers: tuple[tuple[Action, ...], ...]
    texts: tuple[int, ...] | None = None

    @property
    def stages(self) -> int:
        """Return the number of stages."""
        return len(self.placement)

    def continues(self, micro_batch: int) -> int | None:
        """Return the micro-batch whose token a micro-batch needs, the last one of its text; None at first."""
        if self.texts is None:
            return micro_batch - 1 if micro_batch else None
        text, earlier = self.texts[micro_batch], self.texts[:micro_batch]
        return next((i for i in reversed(range(micro_batch)) if earlier[i] == text), None)
