"""Walks the lists of a schedule as the workers would, and finds out whether they deadlock.

It returns a causal order, in which nothing precedes what it waits for. The validator, the simulator and the
merging of lists all use it. Sends do not wait. These do:

    a receive               for its send
    REDUCE_WAIT of a stage  for that stage's REDUCE_START on every replica
    UPDATE                  for REDUCE_WAIT of every stage of its group: the gradient norm is over all of them
"""

from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from trainer.schedule.actions import RECEIVE_OF, SENDS, Action, Kind, Schedule


class ScheduleError(ValueError):
    """The schedule would hang, or compute something else; the message names the worker and the action."""


class Message(NamedTuple):
    """What both ends of a message have in common; the first three fields name its channel."""

    kind: Kind  # of the sending end
    source: int
    target: int
    micro_batch: int


class Place(NamedTuple):
    """The place of an action."""

    replica: int
    worker: int
    position: int  # in the worker's list


# The sending end of a message, by its receiving end.
SEND_OF = {receive: send for send, receive in RECEIVE_OF.items()}

# What one action gives and another waits for: a message, a REDUCE_START or a REDUCE_WAIT. Plain tuples, as
# there are as many as messages: (kind, source, target, micro-batch, replica), (REDUCE_START, stage),
# (REDUCE_WAIT, replica).
_Token = tuple[Any, ...]


def message_of(action: Action) -> Message | None:
    """Return the message that an action sends or receives; None if it does neither."""
    kind = SEND_OF.get(action.kind)
    if kind is not None:
        return Message(kind, action.peer, action.stage, action.micro_batch)
    if action.kind in SENDS:
        return Message(action.kind, action.stage, action.peer, action.micro_batch)
    return None


class Wiring:
    """Which actions wait for which: whatever passes between two actions has a number.

    Args:
        schedules: One for every replica.

    Attributes:
        schedules: The same.
        lists: One entry for every worker of every replica: the replica, the worker, and for each action of
            its list the number of what it waits for and of what it gives; -1 for nothing.
        givers: By number, how many actions give it. A waiting action needs all of them.
    """

    def __init__(self, schedules: Sequence[Schedule]) -> None:
        self.schedules = schedules
        self.lists: list[tuple[int, int, list[int], list[int]]] = []
        self._numbers: dict[_Token, int] = {}
        for replica, schedule in enumerate(schedules):
            for worker, actions in enumerate(schedule.workers):
                self.lists.append((replica, worker, *self._wire(replica, actions)))
        self.givers = [1] * len(self._numbers)
        for token, number in self._numbers.items():
            if token[0] is Kind.REDUCE_START:
                self.givers[number] = len(schedules)
            elif token[0] is Kind.REDUCE_WAIT:
                self.givers[number] = schedules[token[-1]].stages

    def _wire(self, replica: int, actions: Sequence[Action]) -> tuple[list[int], list[int]]:
        waits, gives = [], []
        for action in actions:
            awaited, given = _tokens(replica, action)
            waits.append(-1 if awaited is None else self._number(awaited))
            gives.append(-1 if given is None else self._number(given))
        return waits, gives

    def _number(self, token: _Token) -> int:
        return self._numbers.setdefault(token, len(self._numbers))

    def causal_order(self) -> list[Place]:
        """Return all actions of all replicas in an order in which they can happen; takes O(actions).

        Raises:
            ScheduleError: They deadlock; the message names the workers that wait for one another.
        """
        missing = list(self.givers)
        at = [0] * len(self.lists)
        waiting: defaultdict[int, list[int]] = defaultdict(list)
        order: list[Place] = []
        ready = deque(range(len(self.lists)))
        while ready:
            number = ready.popleft()
            replica, worker, waits, gives = self.lists[number]
            for position in range(at[number], len(waits)):
                awaited = waits[position]
                if awaited >= 0 and missing[awaited]:
                    waiting[awaited].append(number)
                    at[number] = position
                    break
                order.append(Place(replica, worker, position))
                given = gives[position]
                if given >= 0:
                    missing[given] -= 1
                    if not missing[given]:
                        ready.extend(waiting.pop(given, ()))
        if waiting:
            blocked = sorted((number, at[number]) for numbers in waiting.values() for number in numbers)
            raise self._deadlock(blocked)
        return order

    def _deadlock(self, blocked: Sequence[tuple[int, int]]) -> ScheduleError:
        """Return an error that follows the waiting from the first blocked worker until one recurs."""
        givers: dict[int, tuple[int, int]] = {}
        for number, position in blocked:
            for given in self.lists[number][3][position:]:
                if given >= 0:
                    givers.setdefault(given, (number, position))
        place, seen = blocked[0], set[tuple[int, int]]()
        text = f"deadlock: {self._name(place[0])}"
        while place not in seen:
            seen.add(place)
            number, position = place
            replica, worker, waits, _ = self.lists[number]
            which = ", which" if len(seen) > 1 else ""
            text += f"{which} waits in {self.schedules[replica].workers[worker][position]}"
            if waits[position] not in givers:
                return ScheduleError(f"{text} for an action that no worker performs")
            place = givers[waits[position]]
            text += f" for {self._name(place[0])}"
        return ScheduleError(text)

    def _name(self, number: int) -> str:
        replica, worker, *_ = self.lists[number]
        return f"worker {worker}" + (f" of replica {replica}" if len(self.schedules) > 1 else "")


def causal_order(schedules: Sequence[Schedule]) -> list[Place]:
    """Return all actions of all replicas in an order in which they can happen; takes O(actions).

    Args:
        schedules: One for every replica.

    Raises:
        ScheduleError: They deadlock; the message names the workers that wait for one another.
    """
    return Wiring(schedules).causal_order()


def _tokens(replica: int, action: Action) -> tuple[_Token | None, _Token | None]:
    """Return what an action waits for, and what it gives."""
    kind = action.kind
    if kind in SENDS:
        return None, (kind, action.stage, action.peer, action.micro_batch, replica)
    send = SEND_OF.get(kind)
    if send is not None:
        return (send, action.peer, action.stage, action.micro_batch, replica), None
    if kind is Kind.REDUCE_START:
        return None, (kind, action.stage)
    if kind is Kind.REDUCE_WAIT:
        return (Kind.REDUCE_START, action.stage), (kind, replica)
    if kind is Kind.UPDATE:
        return (Kind.REDUCE_WAIT, replica), None
    return None, None
