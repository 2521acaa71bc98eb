"""`python -m trainer.bench.overhead`: what the engine costs per action, beyond the autograd inside it.

Nearly empty layers run through the engine, with all stages in one process, and through a bare autograd loop
over the same graphs: a leaf, the layer and its backward, for every layer and micro-batch. A second table
compares split backwards with full ones, on real layers.
"""

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from trainer.bench.gpt import Work
from trainer.bench.sleeping import MeanOfSamples, Numbers
from trainer.bench.split_backward import ratios
from trainer.distributed import environment
from trainer.distributed.layout import Layout
from trainer.distributed.waiting import WaitMeter
from trainer.models.model import Layer
from trainer.pipeline.engine import Engine
from trainer.pipeline.layer import BuiltLayer
from trainer.pipeline.micro_batches import MicroBatches
from trainer.pipeline.randomness import Randomness
from trainer.pipeline.stage import Stage
from trainer.pipeline.ties import TiedParameters
from trainer.pipeline.transport import LocalTransport
from trainer.replication.replication import Replication
from trainer.schedule.actions import Action
from trainer.schedule.assemble import training_schedule
from trainer.schedule.merge import by_rank
from trainer.schedule.recipe import ScheduleRecipe
from trainer.schedule.resolve import recipes, resolve

_CPU = torch.device("cpu")
_FLOATS = 256


class Empty(nn.Module):
    """Multiplies by a scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """Map a tensor of any shape to one of the same shape."""
        return x * self.weight


class Bench:
    """An engine with n empty stages in one process, and a bare loop over the same layers."""

    def __init__(self, recipe: ScheduleRecipe, stages: int, micro_batches: int) -> None:
        layers = [Layer(f"empty.{number}", Empty) for number in range(stages)]
        self._built = [BuiltLayer(number, layer.name, layer.build()) for number, layer in enumerate(layers)]
        self._loss = MeanOfSamples()
        local = LocalTransport(dict.fromkeys(range(stages), _CPU))
        stages_here = {
            number: Stage(
                number,
                [built],
                _CPU,
                loss=self._loss if number == stages - 1 else None,
                randomness=Randomness(0),
                on_layer_done=local.progress,
            )
            for number, built in enumerate(self._built)
        }
        self.engine = Engine(
            stages_here,
            last_stage=stages - 1,
            local=local,
            remote=local,
            gradients=Replication(),
            ties=TiedParameters(stages_here, layers, range(stages)),
            meter=WaitMeter(),
        )
        schedule = training_schedule(recipe, stages, micro_batches)
        self.actions: tuple[Action, ...] = by_rank(schedule, Layout(1, stages, stages)).workers[0]
        samples = [np.array([number]) for number in range(micro_batches)]
        data = Numbers(micro_batches, _FLOATS)
        self._source = MicroBatches(data, samples, Randomness(0), read_inputs=True, read_targets=True)
        self._micro_batches = micro_batches

    def weights(self) -> list[Tensor]:
        """Return the parameters of all stages."""
        return [parameter for built in self._built for parameter in built.module.parameters()]

    def step(self) -> None:
        """Run the schedule once through the engine."""
        self.engine.train(self.actions, self._source, 1.0)

    def bare(self) -> None:
        """Run the same forwards and backwards in a bare loop."""
        for number in range(self._micro_batches):
            tape: list[tuple[Tensor, Tensor]] = []
            x = self._source.inputs(number)
            assert isinstance(x, Tensor)
            for built in self._built:
                leaf = x.detach().requires_grad_()
                x = built.module(leaf)
                tape.append((leaf, x))
            leaf = x.detach().requires_grad_()
            tape.append((leaf, self._loss(leaf, self._source.targets(number))))
            gradient: Tensor | None = None
            while tape:
                leaf, output = tape.pop()
                torch.autograd.backward([output], None if gradient is None else [gradient])
                gradient = leaf.grad


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m trainer.bench.overhead", description=__doc__)
    parser.add_argument("--stages", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--micro-batches", type=int, default=32)
    parser.add_argument("--schedule", choices=list(recipes()), default="1f1b")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--split-rounds", type=int, default=20, help="rounds of the second table")
    given = parser.parse_args()
    torch.set_num_threads(1)
    environment.keep_freed_memory()
    print("stages  actions  microseconds per action: engine   bare autograd   overhead")
    recipe = resolve(given.schedule)
    for stages in given.stages:
        bench = Bench(recipe, stages, given.micro_batches)
        engine, bare = _medians(given.rounds, bench.step, bench.bare)
        count = len(bench.actions)
        engine, bare = engine / count * 1e6, bare / count * 1e6
        print(f"{stages:6}{count:9}{engine:33.1f}{bare:16.1f}{engine - bare:11.1f}")
    print(f"\n{given.stages[-1]} stages, by kind: microseconds per action, including bare autograd")
    for kind, seconds in _by_kind(bench, given.rounds).items():
        print(f"  {kind:20}{seconds * 1e6:8.1f}")
    work = Work()
    print(
        f"\n{work.blocks} GPT blocks of width {work.width}, {work.micro_batches} micro-batches: CPU time "
        "of a step over that with full backwards, median (95 % interval)"
    )
    for way, ratio in ratios(work, given.split_rounds).items():
        print(f"  {way:28}{ratio}")


def _medians(rounds: int, *ways: Callable[[], None]) -> list[float]:
    """Return the median seconds of each way, measured alternately."""
    seconds: list[list[float]] = [[] for _ in ways]
    for _ in range(rounds + 1):  # the first one warms up
        for way, taken in zip(ways, seconds, strict=True):
            start = time.perf_counter()
            way()
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken[1:]) for taken in seconds]


def _by_kind(bench: Bench, rounds: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        bench.step()
        for action, times in zip(bench.engine.timings.actions, bench.engine.timings.times, strict=True):
            seconds[action.kind.name.lower().replace("_", " ")].append(times.end - times.ready)
    return {kind: statistics.median(taken) for kind, taken in seconds.items()}


if __name__ == "__main__":
    main()
