"""Builds whole lists from orders of computing: adds messages, averaging, ties and the optimizer's step."""

from collections.abc import Sequence

from trainer.schedule.actions import MAKES_INPUT_GRADIENT, Action, Kind, Order, Schedule, Tied, Work
from trainer.schedule.orders import forward_only
from trainer.schedule.recipe import ScheduleRecipe


def training_schedule(
    recipe: ScheduleRecipe,
    workers: int,
    micro_batches: int,
    ties: Sequence[Tied] = (),
    stages_per_worker: int | None = None,
    *,
    work: Work | None = None,
) -> Schedule:
    """Return the schedule of one training step of a group.

    Args:
        recipe: Places the stages and orders what workers compute.
        workers: The number of workers.
        micro_batches: The number of micro-batches in the replica's step.
        ties: Which stages share parameters; every tie once, in layer order.
        stages_per_worker: The number of stages a worker; None: the recipe's own choice.
        work: The time of forwards, whole backwards and both parts of split ones, by stage, for recipes whose
            order depends on it; None: a forward and each part take equal time.

    Raises:
        UserError: The recipe does not support these numbers.
    """
    placement = recipe.placement(workers, stages_per_worker)
    orders = recipe.orders(placement, micro_batches, work)
    lists = [
        (*_with_messages(order, len(placement) - 1), *_tail(held, ties))
        for order, held in zip(orders, _held(placement), strict=True)
    ]
    return Schedule(recipe.name, placement, micro_batches, tuple(lists))


def evaluation_schedule(placement: Sequence[int], micro_batches: int) -> Schedule:
    """Return the schedule of forward passes alone.

    Args:
        placement: The worker that holds each stage.
        micro_batches: The number of micro-batches.
    """
    held = _held(placement)
    lists = [
        _with_messages(forward_only(stages, len(held), micro_batches), len(placement) - 1) for stages in held
    ]
    return Schedule("evaluation", tuple(placement), micro_batches, tuple(lists))


def generation_schedule(
    placement: Sequence[int], tokens: int, texts: Sequence[int] | None = None
) -> Schedule:
    """Return the schedule that generates tokens one by one: every token is a micro-batch of its own.

    The last stage samples a token and sends it to the first, which appends it to the text. With several texts
    the first stage works on others while a token is on its way.

    Args:
        placement: The worker that holds each stage.
        tokens: The number of tokens to generate.
        texts: The text that each token belongs to, in the order of the forwards; None: all to one.
    """
    last = len(placement) - 1
    lists: list[list[Action]] = [[] for _ in range(max(placement) + 1)]
    texts = [0] * tokens if texts is None else texts
    latest: dict[int, int] = {}  # by text: its latest token, in the order in which they are sampled
    for token, text in enumerate(texts):
        for stage, worker in enumerate(placement):
            while stage == 0 and text in latest:  # tokens arrive in order, those of other texts too
                lists[worker].append(Action(Kind.RECEIVE_TOKEN, 0, latest.pop(next(iter(latest))), last))
            lists[worker] += _with_messages((Action(Kind.FORWARD, stage, token),), last)
            if stage == last:
                sampled = Action(Kind.SAMPLE, stage, token), Action(Kind.SEND_TOKEN, stage, token, 0)
                lists[worker] += sampled
        latest[text] = token
    lists[placement[0]] += [Action(Kind.RECEIVE_TOKEN, 0, token, last) for token in latest.values()]
    several = tuple(texts) if any(texts) else None
    return Schedule("generation", tuple(placement), tokens, tuple(map(tuple, lists)), several)


def _held(placement: Sequence[int]) -> list[list[int]]:
    """Return the stages of each worker."""
    held: list[list[int]] = [[] for _ in range(max(placement) + 1)]
    for stage, worker in enumerate(placement):
        held[worker].append(stage)
    return held


def _with_messages(order: Order, last: int) -> Order:
    """Put a receive before, and a send after, every action that another stage provides for or waits for.

    Also where one worker holds both stages: the message then stays in its process.
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
        elif action.kind in MAKES_INPUT_GRADIENT:
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

    A use sends its gradient before the owner receives it, and the owner sends the averaged one before a use
    receives it, so that a tie within one worker is no special case.
    """
    uses = [tie for tie in ties if tie.use in held]
    owned = [tie for tie in ties if tie.owner in held]
    return (
        *(Action(Kind.SEND_TIED_GRADIENT, tie.use, peer=tie.owner) for tie in uses),
        *(Action(Kind.RECEIVE_TIED_GRADIENT, tie.owner, peer=tie.use) for tie in owned),
        *(Action(Kind.REDUCE_START, stage) for stage in held),
        *(Action(Kind.REDUCE_WAIT, stage) for stage in held),
        *(Action(Kind.SEND_REDUCED_GRADIENT, tie.owner, peer=tie.use) for tie in owned),
        *(Action(Kind.RECEIVE_REDUCED_GRADIENT, tie.use, peer=tie.owner) for tie in uses),
        *(Action(Kind.UPDATE, stage) for stage in held),
    )
