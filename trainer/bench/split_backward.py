"""The cost of split backwards over full ones, with GPT blocks as the only stage of one process.

The forwards and backwards of a step, in 1F1B's order on one worker: with full backwards; split, with each
weight gradient right after its input gradient; and split, with all weight gradients at the end of the step,
when their inputs have left the caches.
"""

import time
from collections.abc import Sequence

from trainer.bench.gpt import Work
from trainer.bench.lone_stage import LoneStage
from trainer.bench.statistics import Interval, median_interval
from trainer.schedule.actions import Action, Kind

_FULL = "full"


def orders(micro_batches: int) -> dict[str, list[Action]]:
    """Return the actions of a step, by how its backwards run."""
    numbers = range(micro_batches)

    def each(*kinds: Kind) -> list[Action]:
        return [Action(kind, 0, number) for number in numbers for kind in kinds]

    return {
        _FULL: each(Kind.FORWARD, Kind.BACKWARD),
        "split": each(Kind.FORWARD, Kind.BACKWARD_INPUT, Kind.BACKWARD_WEIGHT),
        "split, weights at the end": [
            *each(Kind.FORWARD, Kind.BACKWARD_INPUT),
            *each(Kind.BACKWARD_WEIGHT),
        ],
    }


def step(stage: LoneStage, order: Sequence[Action]) -> None:
    """Run the actions of a step, starting without gradients."""
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
    """Return the CPU time of steps with split backwards over that with full ones, measured alternately."""
    stage, ways = LoneStage(work), orders(work.micro_batches)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):  # the first one warms up
        for name, order in ways.items():
            start = time.process_time()
            step(stage, order)
            seconds[name].append(time.process_time() - start)
    full = seconds.pop(_FULL)[1:]
    return {
        name: median_interval([split / other for split, other in zip(taken[1:], full, strict=True)])
        for name, taken in seconds.items()
    }
