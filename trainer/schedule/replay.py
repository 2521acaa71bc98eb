"""Walks the lists of a schedule as the workers would, and finds out whether they come to an end.

The order that it returns (causal order: nothing comes before what it waits for) serves the validator, the
simulator and the merging of lists alike. A send does not wait; what does wait:

    a receive             for its send
    FINISH of a stage     for that stage's AVERAGE on every replica
    STEP                  for FINISH of every stage of its group: the gradient norm is over all of them
"""

from collections import defaultdict, deque
from collections.abc import Sequence
from typing import NamedTuple

from trainer.schedule.actions import RECEIVE_OF, SENDS, Action, Kind, Schedule


class ScheduleError(ValueError):
    """The schedule would hang or compute something else; the message names worker and action."""


class Message(NamedTuple):
    """What makes the two ends of a message one; the first three name its channel."""

    kind: Kind  # that of the sending end
    source: int
    target: int
    micro_batch: int


class Place(NamedTuple):
    """Where an action stands."""

    replica: int
    worker: int
    position: int  # in the worker's list


# The sending end of every kind of receive.
SEND_OF = {receive: send for send, receive in RECEIVE_OF.items()}


class Token(NamedTuple):
    """What one action gives and another waits for: a message, an AVERAGE, or a FINISH."""

    what: Message | Kind
    number: int  # the replica, but the stage of an AVERAGE: that is for all replicas


def message_of(action: Action) -> Message | None:
    """Return the message that an action sends or receives, None if it does neither."""
    kind = SEND_OF.get(action.kind)
    if kind is not None:
        return Message(kind, action.peer, action.stage, action.micro_batch)
    if action.kind in SENDS:
        return Message(action.kind, action.stage, action.peer, action.micro_batch)
    return None


def causal_order(schedules: Sequence[Schedule]) -> list[Place]:
    """Return all actions of all replicas in an order in which they can happen; takes O(actions).

    Args:
        schedules: One for every replica.

    Raises:
        ScheduleError: They cannot all happen; the message names the workers that wait for one another.
    """
    lists = [
        (replica, worker, actions)
        for replica, schedule in enumerate(schedules)
        for worker, actions in enumerate(schedule.workers)
    ]
    at = [0] * len(lists)
    given: defaultdict[Token, int] = defaultdict(int)
    waiting: defaultdict[Token, list[int]] = defaultdict(list)
    order: list[Place] = []
    ready = deque(range(len(lists)))
    while ready:
        number = ready.popleft()
        replica, worker, actions = lists[number]
        for index in range(at[number], len(actions)):
            awaited = _waits(replica, actions[index])
            if awaited is not None and given[awaited] < _times(awaited, schedules):
                waiting[awaited].append(number)
                at[number] = index
                break
            order.append(Place(replica, worker, index))
            token = _gives(replica, actions[index])
            if token is not None:
                given[token] += 1
                if given[token] >= _times(token, schedules):
                    ready.extend(waiting.pop(token, ()))
    if waiting:
        blocked = [Place(*lists[number][:2], at[number]) for all_ in waiting.values() for number in all_]
        raise ScheduleError(_deadlock(schedules, sorted(blocked)))
    return order


def _waits(replica: int, action: Action) -> Token | None:
    if action.kind is Kind.FINISH:
        return Token(Kind.AVERAGE, action.stage)
    if action.kind is Kind.STEP:
        return Token(Kind.FINISH, replica)
    message = message_of(action) if action.kind in SEND_OF else None
    return None if message is None else Token(message, replica)


def _gives(replica: int, action: Action) -> Token | None:
    if action.kind is Kind.AVERAGE:
        return Token(Kind.AVERAGE, action.stage)
    if action.kind is Kind.FINISH:
        return Token(Kind.FINISH, replica)
    message = message_of(action) if action.kind in SENDS else None
    return None if message is None else Token(message, replica)


def _times(token: Token, schedules: Sequence[Schedule]) -> int:
    """Return how often a token must be given before it lets anyone go on."""
    if token.what is Kind.AVERAGE:
        return len(schedules)
    if token.what is Kind.FINISH:
        return schedules[token.number].stages
    return 1


def _deadlock(schedules: Sequence[Schedule], blocked: Sequence[Place]) -> str:
    """Say who waits for whom, from the first worker that is blocked until one comes up again."""
    givers: dict[Token, Place] = {}
    for place in blocked:
        actions = schedules[place.replica].workers[place.worker]
        for action in actions[place.position :]:
            token = _gives(place.replica, action)
            if token is not None:
                givers.setdefault(token, place)
    place, seen, text = blocked[0], set[Place](), []
    while place not in seen:
        seen.add(place)
        action = schedules[place.replica].workers[place.worker][place.position]
        text.append(f"{_name(place, len(schedules))} waits in {action}")
        awaited = _waits(place.replica, action)
        if awaited is None or awaited not in givers:
            return f"deadlock: {', for '.join(text)}, for what nobody does"
        place = givers[awaited]
    return f"deadlock: {', for '.join(text)}, for {_name(place, len(schedules))}"


def _name(place: Place, replicas: int) -> str:
    return f"worker {place.worker}" + (f" of replica {place.replica}" if replicas > 1 else "")
