"""Checks, before a run, that schedules compute a step and terminate; errors name the worker and the action.

For every replica:

    known     every action is one that its worker can perform
    once      everything that the step needs appears, and nothing appears twice
    before    what an action needs comes earlier in its worker's list (the table is in `needs`)
    last      nothing but further UPDATEs follows an UPDATE
    ties      gradients of tied parameters reach the owner, and the averaged gradient comes back
    messages  every send has its receive, and both ends of a channel have the same order: NCCL has no tags

For all replicas together: the same averages in the same order, and no cycle of waiting.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import TypeAlias

from trainer.schedule.actions import SENDS, Action, Kind, Schedule, Tied
from trainer.schedule.needs import Index, needs
from trainer.schedule.replay import ScheduleError, causal_order, message_of

__all__ = ["ScheduleError", "validate"]

ONCE_A_STEP = frozenset({Kind.REDUCE_START, Kind.REDUCE_WAIT, Kind.UPDATE})
OF_TIES = frozenset(
    {
        Kind.SEND_TIED_GRADIENT,
        Kind.RECEIVE_TIED_GRADIENT,
        Kind.SEND_REDUCED_GRADIENT,
        Kind.RECEIVE_REDUCED_GRADIENT,
    }
)
# The other end of a message, relative to its own stage.
NEIGHBOUR = {
    Kind.SEND_ACTIVATION: 1,
    Kind.RECEIVE_ACTIVATION: -1,
    Kind.SEND_GRADIENT: -1,
    Kind.RECEIVE_GRADIENT: 1,
}
# One end of a channel, by micro-batch, in the order of the list.
_Ends: TypeAlias = dict[int, Action]


def validate(schedules: Sequence[Schedule], ties: Sequence[Tied] | None = None) -> None:
    """Check the schedules of a whole world.

    Args:
        schedules: One for every replica; equal ones are checked once.
        ties: The ties that training schedules must carry out; None: whatever ties they have.

    Raises:
        ScheduleError: They break a rule.
    """
    distinct: dict[int, Schedule] = {}
    for replica, schedule in enumerate(schedules):
        if schedule not in distinct.values():
            distinct[replica] = schedule
    for replica, schedule in distinct.items():
        try:
            _check(schedule, ties)
        except ScheduleError as error:
            raise ScheduleError(f"schedule {schedule.name}, replica {replica}: {error}") from None
    _check_averages(distinct)
    # Replicas with equal lists do the same at the same time, so one of each shows whether they deadlock.
    causal_order(list(distinct.values()))


def _check(schedule: Schedule, ties: Sequence[Tied] | None) -> None:
    """Check everything about one replica except deadlock."""
    _check_known(schedule)
    index = Index(schedule, _positions(schedule))
    _check_complete(index)
    _check_ties(index, ties)
    _check_before(index)
    _check_step_is_last(schedule)
    _check_messages(schedule)


def _error(worker: int, text: str) -> ScheduleError:
    return ScheduleError(f"worker {worker}: {text}")


def _check_known(schedule: Schedule) -> None:
    stages, last = schedule.stages, schedule.stages - 1
    if not all(0 <= worker < len(schedule.workers) for worker in schedule.placement):
        raise ScheduleError(f"placement {schedule.placement} does not fit {len(schedule.workers)} workers")
    for worker, actions in enumerate(schedule.workers):
        for action in actions:
            if not 0 <= action.stage < stages:
                raise _error(worker, f"{action} is for a stage that does not exist; there are {stages}")
            if schedule.placement[action.stage] != worker:
                holder = schedule.placement[action.stage]
                raise _error(worker, f"{action} is for a stage that worker {holder} holds")
            if action.kind in (Kind.SAMPLE, Kind.SEND_TOKEN) and action.stage != last:
                raise _error(worker, f"{action} is not for the last stage, {last}")
            if action.kind is Kind.RECEIVE_TOKEN and action.stage != 0:
                raise _error(worker, f"{action} is not for the first stage")
            if action.peer not in _peers(action, stages):
                raise _error(worker, f"{action} has a wrong stage at its other end")
            if action.micro_batch not in _micro_batches(action, schedule):
                raise _error(worker, f"{action} has a wrong micro-batch; there are {schedule.micro_batches}")


def _peers(action: Action, stages: int) -> range:
    """Return the stages that may be at the other end of an action."""
    kind, peer = action.kind, -1
    if kind in NEIGHBOUR:
        peer = action.stage + NEIGHBOUR[kind]
        return range(max(peer, 0), min(peer + 1, stages))
    if kind in OF_TIES:
        return range(stages)
    if kind is Kind.SEND_TOKEN:
        peer = 0
    elif kind is Kind.RECEIVE_TOKEN:
        peer = stages - 1
    return range(peer, peer + 1)


def _micro_batches(action: Action, schedule: Schedule) -> range:
    """Return the micro-batches that an action may have."""
    if action.kind in ONCE_A_STEP or action.kind in OF_TIES:
        return range(-1, 0)
    return range(schedule.micro_batches)


def _positions(schedule: Schedule) -> dict[Action, int]:
    """Return the position of each action in its list; no action may appear twice."""
    positions: dict[Action, int] = {}
    for worker, actions in enumerate(schedule.workers):
        for position, action in enumerate(actions):
            if action in positions:
                raise _error(worker, f"{action} appears twice")
            positions[action] = position
    return positions


def _check_complete(index: Index) -> None:
    schedule = index.schedule
    for stage in range(schedule.stages):
        kinds = [Kind.FORWARD, Kind.SAMPLE] if index.tokens and stage == index.last else [Kind.FORWARD]
        wanted = [Action(kind, stage, i) for kind in kinds for i in range(schedule.micro_batches)]
        if index.training:
            wanted += [
                part(stage, i)
                for i in range(schedule.micro_batches)
                for part in (index.passes_on, index.completes)
            ]
            wanted += [Action(kind, stage) for kind in (Kind.REDUCE_START, Kind.REDUCE_WAIT, Kind.UPDATE)]
        if index.tokens and stage == index.last:
            wanted += [Action(Kind.SEND_TOKEN, stage, i, peer=0) for i in range(schedule.micro_batches)]
        for action in wanted:
            if action not in index.positions:
                raise _error(schedule.placement[stage], f"{action} is missing")
        for i in range(schedule.micro_batches):
            whole, part = Action(Kind.BACKWARD, stage, i), index.passes_on(stage, i)
            if part != whole and whole in index.positions:
                raise _error(schedule.placement[stage], f"{whole} and {part} both appear: whole or split?")


def _check_ties(index: Index, ties: Sequence[Tied] | None) -> None:
    placement = index.schedule.placement
    if ties is not None and index.training:
        for tie in ties:
            if tie not in index.ties:
                missing = Action(Kind.SEND_TIED_GRADIENT, tie.use, peer=tie.owner)
                raise _error(
                    placement[tie.use], f"{missing} is missing: stages {tie.owner} and {tie.use} are tied"
                )
        for tie in index.ties:
            if tie not in ties:
                raise _error(
                    placement[tie.use],
                    f"{Action(Kind.SEND_TIED_GRADIENT, tie.use, peer=tie.owner)} ties nothing",
                )
    wanted = set[Action]()
    for tie in index.ties:
        wanted |= {
            Action(Kind.SEND_TIED_GRADIENT, tie.use, peer=tie.owner),
            Action(Kind.RECEIVE_TIED_GRADIENT, tie.owner, peer=tie.use),
            Action(Kind.SEND_REDUCED_GRADIENT, tie.owner, peer=tie.use),
            Action(Kind.RECEIVE_REDUCED_GRADIENT, tie.use, peer=tie.owner),
        }
    for action in sorted(wanted - index.positions.keys(), key=str):
        raise _error(placement[action.stage], f"{action} is missing")
    for action in index.positions:
        if action.kind in OF_TIES and action not in wanted:
            raise _error(placement[action.stage], f"{action} belongs to no tie")


def _check_before(index: Index) -> None:
    for worker, actions in enumerate(index.schedule.workers):
        for position, action in enumerate(actions):
            for needed in needs(action, index):
                if needed not in index.positions:
                    raise _error(worker, f"{action} needs {needed}, which is missing")
                if index.positions[needed] > position:
                    raise _error(worker, f"{action} comes before {needed}, which it needs")


def _check_step_is_last(schedule: Schedule) -> None:
    for worker, actions in enumerate(schedule.workers):
        step = None
        for action in actions:
            if action.kind is Kind.UPDATE:
                step = action
            elif step is not None:
                raise _error(worker, f"{action} comes after {step}, which must be last")


def _check_messages(schedule: Schedule) -> None:
    """Compare the order of sends with the order of receives, channel by channel."""
    channels: defaultdict[tuple[Kind, int, int], tuple[_Ends, _Ends]] = defaultdict(lambda: ({}, {}))
    for actions in schedule.workers:
        for action in actions:
            message = message_of(action)
            if message is not None:
                sends, receives = channels[message.kind, message.source, message.target]
                (sends if action.kind in SENDS else receives)[message.micro_batch] = action
    for sends, receives in channels.values():
        for ends, others, what in ((sends, receives, "receive"), (receives, sends, "send")):
            for i, action in ends.items():
                if i not in others:
                    raise _error(schedule.placement[action.stage], f"{action} has no {what} at its other end")
        for send, receive in zip(sends.values(), receives.values(), strict=True):
            if send.micro_batch != receive.micro_batch:
                sender = f"worker {schedule.placement[send.stage]} has {send}"
                raise _error(schedule.placement[receive.stage], f"{receive} is out of order: {sender} there")


def _check_averages(schedules: dict[int, Schedule]) -> None:
    """Compare the averages of every replica with the first one's."""
    averages = {
        replica: [
            [action.stage for action in actions if action.kind is Kind.REDUCE_START]
            for actions in schedule.workers
        ]
        for replica, schedule in schedules.items()
    }
    for replica, workers in averages.items():
        if schedules[replica].placement != schedules[0].placement:
            raise ScheduleError(f"replica {replica} places its stages differently from replica 0")
        for worker, stages in enumerate(workers):
            if stages != averages[0][worker]:
                raise _error(
                    worker,
                    f"averages stages {stages} on replica {replica}, but {averages[0][worker]} on replica 0: "
                    f"all replicas must average the same stages in the same order",
                )
