"""What backwards in two parts cost beside whole ones: GPT blocks as the only stage of one process.

The same forwards and backwards of a step, as 1F1B has them on one worker: whole; split, each weight gradient
right behind its input gradient; and split, with all weight gradients at the end of the step, when what they
take has left the caches.
"""

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from trainer.bench.gpt import Work
from trainer.bench.statistics import Interval, median_interval
from trainer.pipeline.build import build_layer
from trainer.pipeline.randomness import Randomness
from trainer.pipeline.stage import Stage
from trainer.schedule.actions import Action, Kind

_CPU = torch.device("cpu")
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


class SplitBench:
    """The blocks of a GPT as a stage in the middle of a pipeline, with nothing around it."""

    def __init__(self, work: Work) -> None:
        layers = [layer for layer in work.model().layers if layer.name.startswith("block.")]
        built = [build_layer(layers, number, 0, _CPU) for number in range(len(layers))]
        nothing: Callable[[], None] = lambda: None  # noqa: E731
        self._stage = Stage(0, built, _CPU, loss=None, randomness=Randomness(0), on_layer_done=nothing)
        self._stage.train(True)
        shape = work.micro_batches, work.micro_batch, work.context, work.width
        generator = torch.Generator().manual_seed(0)
        self._inputs = torch.randn(shape, generator=generator).unbind()
        self._gradients = torch.randn(shape, generator=generator).unbind()

    def parameters(self) -> list[Tensor]:
        """Return the parameters of all blocks."""
        return [parameter for layer in self._stage.layers for parameter in layer.module.parameters()]

    def step(self, order: Sequence[Action]) -> None:
        """Do the actions of a step; gradients are made anew."""
        for parameter in self.parameters():
            parameter.grad = None
        split = any(action.kind is Kind.BACKWARD_WEIGHT for action in order)
        for action in order:
            number = action.micro_batch
            if action.kind is Kind.FORWARD:
                x = self._inputs[number].detach().requires_grad_()
                self._stage.forward(number, [x], 0, split=split)
            elif action.kind is Kind.BACKWARD_WEIGHT:
                self._stage.weight_gradients(number)
            else:
                self._stage.backward(number, [self._gradients[number]])


def ratios(work: Work, rounds: int) -> dict[str, Interval]:
    """Return the CPU time of steps with split backwards over that of whole ones, taken in turns."""
    bench, ways = SplitBench(work), orders(work.micro_batches)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):  # the first one warms up
        for name, order in ways.items():
            start = time.process_time()
            bench.step(order)
            seconds[name].append(time.process_time() - start)
    whole = seconds.pop(_WHOLE)[1:]
    return {
        name: median_interval([split / other for split, other in zip(taken[1:], whole, strict=True)])
        for name, taken in seconds.items()
    }
