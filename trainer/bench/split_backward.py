"""What backwards in two parts cost beside whole ones: GPT blocks as the only stage of one process.

The same forwards and backwards of a step, as 1F1B has them on one worker: whole; split, each weight gradient
right behind its input gradient; and split, with all weight gradients at the end of the step, when what they
take has left the caches.
"""

import time
from collections.abc import Sequence

from trainer.bench.gpt import Work
from trainer.bench.lone_stage import LoneStage
from trainer.bench.statistics import Interval, median_interval
from trainer.schedule.actions import Action, Kind

_WHOLE = "whole"


def orders(micro_batches: int) -> dict[str, list[Action]]:
    """Return the order of a step by what its backwards are."""
    numbers = range(micro_batches)

    def each(*kinds: Kind) -> list[Action]:
        return [Action(kind, 0, number) for number in numbers for kind in kinds]

    return {
        _WHOLE: each(Kind.FORWARD, Kind.BACKWARD),
        "split": each(Kind.FORWARD, Kind.BACKWARD_INPUT, Kind.BACKWARD_WEIGHT),
        "split, weights at the end": [
            *each(Kind.FORWARD, Kind.BACKWARD_INPUT),
            *each(Kind.BACKWARD_WEIGHT),
        ],
    }


def step(stage: LoneStage, order: Sequence[Action]) -> None:
    """Do the actions of a step; its gradients start from none."""
    for parameter in stage.parameters():
        parameter.grad = None
    split = any(action.kind is Kind.BACKWARD_WEIGHT for action in order)
    for action in order:
        if action.kind is Kind.FORWARD:
            stage.forward(action.micro_batch, split=split)
        elif action.kind is Kind.BACKWARD_WEIGHT:
            stage.weight_gradients(action.micro_batch)
        else:
            stage.backward(action.micro_batch)


def ratios(work: Work, rounds: int) -> dict[str, Interval]:
    """Return the CPU time of steps with split backwards over that of whole ones, taken in turns."""
    stage, ways = LoneStage(work), orders(work.micro_batches)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):  # the first one warms up
        for name, order in ways.items():
            start = time.process_time()
            step(stage, order)
            seconds[name].append(time.process_time() - start)
    whole = seconds.pop(_WHOLE)[1:]
    return {
        name: median_interval([split / other for split, other in zip(taken[1:], whole, strict=True)])
        for name, taken in seconds.items()
    }
