"""The rules for what must precede what in one worker's list, as a readable table."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from trainer.schedule.actions import (
    COMPLETES_WEIGHT_GRADIENT,
    MAKES_INPUT_GRADIENT,
    Action,
    Kind,
    Schedule,
    Tied,
)

TRAINING = (
    MAKES_INPUT_GRADIENT | COMPLETES_WEIGHT_GRADIENT | {Kind.REDUCE_START, Kind.REDUCE_WAIT, Kind.UPDATE}
)
TOKENS = frozenset({Kind.SAMPLE, Kind.SEND_TOKEN, Kind.RECEIVE_TOKEN})
# Kinds that need just one action, of the same stage and micro-batch.
AFTER = {
    Kind.SEND_ACTIVATION: Kind.FORWARD,
    Kind.SAMPLE: Kind.FORWARD,
    Kind.SEND_TOKEN: Kind.SAMPLE,
    Kind.REDUCE_WAIT: Kind.REDUCE_START,
    Kind.SEND_REDUCED_GRADIENT: Kind.REDUCE_WAIT,
}


@dataclass(frozen=True)
class Index:
    """A schedule, with what the rules look up over and over.

    Attributes:
        schedule: The schedule.
        positions: The position of each action in its worker's list.
        training: Whether it has backwards, averages or steps.
        tokens: Whether it samples tokens.
        ties: The ties that it carries out, by the stages that use the parameter.
    """

    schedule: Schedule
    positions: dict[Action, int]
    training: bool = field(init=False)
    tokens: bool = field(init=False)
    ties: tuple[Tied, ...] = field(init=False)

    def __post_init__(self) -> None:
        kinds = {action.kind for action in self.positions}
        ties = {
            Tied(action.peer, action.stage)
            for action in self.positions
            if action.kind is Kind.SEND_TIED_GRADIENT
        }
        object.__setattr__(self, "training", bool(kinds & TRAINING))
        object.__setattr__(self, "tokens", bool(kinds & TOKENS))
        object.__setattr__(self, "ties", tuple(sorted(ties, key=lambda tie: (tie.use, tie.owner))))

    @property
    def last(self) -> int:
        """Return the last stage."""
        return self.schedule.stages - 1

    def passes_on(self, stage: int, i: int) -> Action:
        """Return what makes the gradient of a stage's inputs: a whole backward, or its first part."""
        first = Action(Kind.BACKWARD_INPUT, stage, i)
        return first if first in self.positions else Action(Kind.BACKWARD, stage, i)

    def completes(self, stage: int, i: int) -> Action:
        """Return what completes a micro-batch's gradients: a whole backward, or its second part."""
        split = self.passes_on(stage, i).kind is Kind.BACKWARD_INPUT
        return Action(Kind.BACKWARD_WEIGHT if split else Kind.BACKWARD, stage, i)

    def together(self, stage: int, other: int) -> bool:
        """Return whether one worker holds both stages."""
        return self.schedule.placement[stage] == self.schedule.placement[other]


def needs(action: Action, index: Index) -> Iterator[Action]:
    """Yield the actions that must precede an action in the same list."""
    kind, stage, i = action.kind, action.stage, action.micro_batch
    if kind is Kind.FORWARD:
        yield from _inputs_of_forward(stage, i, index)
    elif kind in MAKES_INPUT_GRADIENT or kind in COMPLETES_WEIGHT_GRADIENT:
        yield from _before_backward(action, index)
    elif kind is Kind.SEND_GRADIENT:
        yield index.passes_on(stage, i)
    elif kind in AFTER:
        yield Action(AFTER[kind], stage, i)
    elif kind in (Kind.SEND_TIED_GRADIENT, Kind.RECEIVE_TIED_GRADIENT, Kind.REDUCE_START):
        yield from _gradients(action, index)
    elif kind is Kind.RECEIVE_REDUCED_GRADIENT:
        yield Action(Kind.SEND_TIED_GRADIENT, stage, peer=action.peer)
    elif kind is Kind.UPDATE:
        yield Action(Kind.REDUCE_WAIT, stage)
        yield from (
            Action(Kind.SEND_REDUCED_GRADIENT, stage, peer=tie.use)
            for tie in index.ties
            if tie.owner == stage
        )
        yield from (
            Action(Kind.RECEIVE_REDUCED_GRADIENT, stage, peer=tie.owner)
            for tie in index.ties
            if tie.use == stage
        )


def _inputs_of_forward(stage: int, i: int, index: Index) -> Iterator[Action]:
    """Yield the previous stage's forward or its message, and the last token if the text grows by it."""
    if stage > 0:
        message = Action(Kind.RECEIVE_ACTIVATION, stage, i, stage - 1)
        yield from _from_neighbour(Action(Kind.FORWARD, stage - 1, i), message, stage, index)
    elif index.tokens and (previous := index.schedule.continues(i)) is not None:
        yield Action(Kind.RECEIVE_TOKEN, 0, previous, index.last)


def _before_backward(action: Action, index: Index) -> Iterator[Action]:
    """Yield what a backward, or a part of one, starts from, and the same part for the previous micro-batch.

    Gradients add up in micro-batch order, which keeps their bits the same in every layout. Both parts of a
    split backward add gradients: not every weight's gradient can be deferred.
    """
    kind, stage, i = action.kind, action.stage, action.micro_batch
    if kind in MAKES_INPUT_GRADIENT:
        yield Action(Kind.FORWARD, stage, i)
        if i > 0:
            yield index.passes_on(stage, i - 1)
        if stage < index.last:
            message = Action(Kind.RECEIVE_GRADIENT, stage, i, stage + 1)
            yield from _from_neighbour(index.passes_on(stage + 1, i), message, stage, index)
    if kind is Kind.BACKWARD_WEIGHT:
        yield Action(Kind.BACKWARD_INPUT, stage, i)
    if kind in COMPLETES_WEIGHT_GRADIENT and i > 0:
        yield index.completes(stage, i - 1)


def _from_neighbour(made: Action, message: Action, stage: int, index: Index) -> Iterator[Action]:
    """Yield what the worker makes itself, and the message if there is or must be one."""
    together = index.together(stage, made.stage)
    if together:
        yield made
    if not together or message in index.positions:
        yield message


def _gradients(action: Action, index: Index) -> Iterator[Action]:
    """Yield the stage's last backward, and uses of its tied parameters, which add up in layer order."""
    stage, last = action.stage, index.schedule.micro_batches - 1
    if last >= 0:
        yield index.completes(stage, last)
    uses = [tie.use for tie in index.ties if tie.owner == stage]
    if action.kind is Kind.RECEIVE_TIED_GRADIENT:
        uses = [use for use in uses if use < action.peer]
    elif action.kind is Kind.SEND_TIED_GRADIENT:
        uses = []
    yield from (Action(Kind.RECEIVE_TIED_GRADIENT, stage, peer=use) for use in uses)
