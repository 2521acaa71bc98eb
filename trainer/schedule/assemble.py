"""From the order of computing to whole lists: adds messages, averaging, ties and the optimizer's step."""

from collections.abc import Sequence

from trainer.errors import UserError
from trainer.schedule import orders
from trainer.schedule.actions import PASSES_ON, Action, Kind, Order, Schedule, Tied, Work
from trainer.schedule.from_file import read_schedule
from trainer.schedule.orders import ORDERS, forward_only
from trainer.schedule.zero_bubble_v import zero_bubble_v


def placement(name: str, workers: int, virtual_stages: int | None = None) -> tuple[int, ...]:
    """Return the worker that holds each stage.

    Args:
        name: A key of `ORDERS`, or the path of a file.
        workers: How many there are.
        virtual_stages: How many stages a worker holds; None: what the schedule needs, or takes by itself.

    Raises:
        UserError: The schedule cannot place so many.
    """
    if name in ORDERS:
        return orders.placement(name, workers, virtual_stages)
    given = read_schedule(name)
    if len(given.orders) != workers or virtual_stages is not None:
        raise UserError(
            f"schedule={name} is for {len(given.orders)} workers and says itself which stages they hold: use "
            f"layout.stages={len(given.orders)}, and leave layout.virtual_stages out"
        )
    return given.placement


def training_schedule(
    name: str,
    workers: int,
    micro_batches: int,
    ties: Sequence[Tied] = (),
    virtual_stages: int | None = None,
    *,
    work: Work | None = None,
) -> Schedule:
    """Return the schedule of one training step of a group.

    Args:
        name: A key of `ORDERS`, or the path of a file.
        workers: Among how many the stages are placed.
        micro_batches: How many the replica's step has.
        ties: Which stages share parameters; every tie once, in the order of layers.
        virtual_stages: How many stages a worker holds, where the schedule leaves it open.
        work: What forwards and both parts of backwards take, for schedules that ask; None: all the same.
    """
    placed = placement(name, workers, virtual_stages)
    lists = []
    for worker, order in enumerate(_orders(name, placed, micro_batches, work)):
        lists.append((*_with_messages(order, len(placed) - 1), *_tail(_held(placed, worker), ties)))
    return Schedule(name, placed, micro_batches, tuple(lists))


def _orders(name: str, placed: Sequence[int], micro_batches: int, work: Work | None) -> Sequence[Order]:
    """Return the order of every worker."""
    workers = max(placed) + 1
    if name == "zb_v":
        return [zero_bubble_v(worker, workers, micro_batches, work=work) for worker in range(workers)]
    if name in ORDERS:
        each = len(placed) // workers
        return [ORDERS[name](worker, workers, micro_batches, each) for worker in range(workers)]
    given = read_schedule(name)
    if given.micro_batches != micro_batches:
        raise UserError(
            f"schedule={name} has {given.micro_batches} micro-batches, but a replica's step has "
            f"{micro_batches}: batch.global_size / batch.micro_size / replicas"
        )
    return given.orders


def evaluation_schedule(placed: Sequence[int], micro_batches: int) -> Schedule:
    """Return the schedule of forward passes alone.

    Args:
        placed: The worker that holds each stage.
        micro_batches: How many there are.
    """
    workers = max(placed) + 1
    lists = []
    for worker in range(workers):
        lists.append(
            _with_messages(forward_only(_held(placed, worker), workers, micro_batches), len(placed) - 1)
        )
    return Schedule("evaluation", tuple(placed), micro_batches, tuple(lists))


def generation_schedule(placed: Sequence[int], tokens: int) -> Schedule:
    """Return the schedule that writes tokens one by one: every token is a micro-batch of its own.

    The last stage samples a token and sends it to the first, which puts it behind the text so far.

    Args:
        placed: The worker that holds each stage.
        tokens: How many are written.
    """
    last = len(placed) - 1
    lists: list[list[Action]] = [[] for _ in range(max(placed) + 1)]
    for token in range(tokens):
        for stage, worker in enumerate(placed):
            if stage == 0 and token > 0:
                lists[worker].append(Action(Kind.RECEIVE_TOKEN, 0, token - 1, last))
            lists[worker] += _with_messages((Action(Kind.FORWARD, stage, token),), last)
            if stage == last:
                sampled = Action(Kind.SAMPLE, stage, token), Action(Kind.SEND_TOKEN, stage, token, 0)
                lists[worker] += sampled
    if tokens > 0:
        lists[placed[0]].append(Action(Kind.RECEIVE_TOKEN, 0, tokens - 1, last))
    return Schedule("generation", tuple(placed), tokens, tuple(map(tuple, lists)))


def _held(placed: Sequence[int], worker: int) -> list[int]:
    """Return the stages of a worker."""
    return [stage for stage, holder in enumerate(placed) if holder == worker]


def _with_messages(order: Order, last: int) -> Order:
    """Put a receive before, and a send behind, whatever needs what another stage makes.

    Also where one worker holds both: the message then stays in its process.
    """
    actions: list[Action] = []
    for action in order:
        stage, i = action.stage, action.micro_batch
        if action.kind is Kind.FORWARD:
            if stage > 0:
                actions.append(Action(Kind.RECEIVE_ACTIVATION, stage, i, stage - 1))
            actions.append(action)
            if stage < last:
                actions.append(Action(Kind.SEND_ACTIVATION, stage, i, stage + 1))
        elif action.kind in PASSES_ON:
            if stage < last:
                actions.append(Action(Kind.RECEIVE_GRADIENT, stage, i, stage + 1))
            actions.append(action)
            if stage > 0:
                actions.append(Action(Kind.SEND_GRADIENT, stage, i, stage - 1))
        else:
            actions.append(action)
    return tuple(actions)


def _tail(held: Sequence[int], ties: Sequence[Tied]) -> Order:
    """Return what follows a worker's last backward.

    A use sends its gradient before the owner receives it, and the owner sends the averaged one before a
    use receives it, so that a tie within one worker needs no case of its own.
    """
    uses = [tie for tie in ties if tie.use in held]
    owned = [tie for tie in ties if tie.owner in held]
    return (
        *(Action(Kind.SEND_TIE, tie.use, peer=tie.owner) for tie in uses),
        *(Action(Kind.RECEIVE_TIE, tie.owner, peer=tie.use) for tie in owned),
        *(Action(Kind.AVERAGE, stage) for stage in held),
        *(Action(Kind.FINISH, stage) for stage in held),
        *(Action(Kind.SEND_TIED, tie.owner, peer=tie.use) for tie in owned),
        *(Action(Kind.RECEIVE_TIED, tie.use, peer=tie.owner) for tie in uses),
        *(Action(Kind.STEP, stage) for stage in held),
    )
