"""From the order of computing to whole lists: adds messages, averaging, ties and the optimizer's step."""

from collections.abc import Sequence

from trainer.schedule.actions import PASSES_ON, Action, Kind, Schedule, Tied
from trainer.schedule.orders import ORDERS, Order, forward_only


def training_schedule(name: str, stages: int, micro_batches: int, ties: Sequence[Tied] = ()) -> Schedule:
    """Return the schedule of one training step of a group, a stage a worker.

    Args:
        name: A key of `ORDERS`.
        stages: The number of stages.
        micro_batches: How many the replica's step has.
        ties: Which stages share parameters; every tie once, in the order of layers.
    """
    placement = tuple(range(stages))
    workers = tuple(
        (
            *_with_messages(ORDERS[name](stage, stages, micro_batches), placement),
            *_tail(stage, ties),
        )
        for stage in range(stages)
    )
    return Schedule(name, placement, micro_batches, workers)


def evaluation_schedule(stages: int, micro_batches: int) -> Schedule:
    """Return the schedule of forward passes alone."""
    placement = tuple(range(stages))
    workers = tuple(
        _with_messages(forward_only(stage, stages, micro_batches), placement) for stage in range(stages)
    )
    return Schedule("evaluation", placement, micro_batches, workers)


def generation_schedule(stages: int, tokens: int) -> Schedule:
    """Return the schedule that writes tokens one by one: every token is a micro-batch of its own.

    The last stage samples a token and sends it to the first, which puts it behind the text so far.
    """
    placement = tuple(range(stages))
    last = stages - 1
    workers = []
    for stage in range(stages):
        actions: list[Action] = []
        for token in range(tokens):
            if stage == 0 and token > 0:
                actions.append(Action(Kind.RECEIVE_TOKEN, 0, token - 1, last))
            actions += _with_messages((Action(Kind.FORWARD, stage, token),), placement)
            if stage == last:
                actions += [Action(Kind.SAMPLE, stage, token), Action(Kind.SEND_TOKEN, stage, token, 0)]
        if stage == 0 and tokens > 0:
            actions.append(Action(Kind.RECEIVE_TOKEN, 0, tokens - 1, last))
        workers.append(tuple(actions))
    return Schedule("generation", placement, tokens, tuple(workers))


def _with_messages(order: Order, placement: tuple[int, ...]) -> Order:
    """Put a receive before, and a send behind, whatever needs what another worker makes."""
    last = len(placement) - 1
    actions: list[Action] = []
    for action in order:
        stage, i = action.stage, action.micro_batch
        before, behind = stage - 1, stage + 1
        has_before = stage > 0 and placement[before] != placement[stage]
        has_behind = stage < last and placement[behind] != placement[stage]
        if action.kind is Kind.FORWARD:
            if has_before:
                actions.append(Action(Kind.RECEIVE_ACTIVATION, stage, i, before))
            actions.append(action)
            if has_behind:
                actions.append(Action(Kind.SEND_ACTIVATION, stage, i, behind))
        elif action.kind in PASSES_ON:
            if has_behind:
                actions.append(Action(Kind.RECEIVE_GRADIENT, stage, i, behind))
            actions.append(action)
            if has_before:
                actions.append(Action(Kind.SEND_GRADIENT, stage, i, before))
        else:
            actions.append(action)
    return tuple(actions)


def _tail(stage: int, ties: Sequence[Tied]) -> Order:
    """Return what follows a stage's last backward.

    A use sends its gradient before the owner receives it, and the owner sends the averaged one before a
    use receives it, so that a tie within one worker needs no case of its own.
    """
    uses = [tie.owner for tie in ties if tie.use == stage]
    owned = [tie.use for tie in ties if tie.owner == stage]
    return (
        *(Action(Kind.SEND_TIE, stage, peer=owner) for owner in uses),
        *(Action(Kind.RECEIVE_TIE, stage, peer=use) for use in owned),
        Action(Kind.AVERAGE, stage),
        Action(Kind.FINISH, stage),
        *(Action(Kind.SEND_TIED, stage, peer=use) for use in owned),
        *(Action(Kind.RECEIVE_TIED, stage, peer=owner) for owner in uses),
        Action(Kind.STEP, stage),
    )
