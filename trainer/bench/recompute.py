"""`python -m trainer.bench.recompute`: what recomputation saves in memory, and what it takes in time.

GPT blocks are the only stage of one process. What a micro-batch keeps between its forward and its backward is
counted, every tensor of it; the time of a step is held against that without recomputation, in turns.
"""

import argparse
import time
from dataclasses import fields

import torch

from trainer.bench.gpt import Work
from trainer.bench.statistics import median_interval
from trainer.config.sizes import size_text
from trainer.pipeline.build import build_layer
from trainer.pipeline.randomness import Randomness
from trainer.pipeline.recomputation import Recompute
from trainer.pipeline.stage import Stage
from trainer.pipeline.tensor_bytes import LiveBytes

_CPU = torch.device("cpu")


class Blocks:
    """The blocks of a GPT as a stage in the middle of a pipeline, with nothing around it."""

    def __init__(self, work: Work, recompute: Recompute) -> None:
        layers = [layer for layer in work.model().layers if layer.name.startswith("block.")]
        built = [build_layer(layers, number, 0, _CPU) for number in range(len(layers))]
        self._stage = Stage(
            0,
            built,
            _CPU,
            loss=None,
            randomness=Randomness(0),
            on_layer_done=lambda: None,
            recompute=[recompute] * len(built),
        )
        self._stage.train(True)
        self._micro_batches = work.micro_batches
        generator = torch.Generator().manual_seed(0)
        shape = work.micro_batch, work.context, work.width
        self._input = torch.randn(shape, generator=generator)
        self._gradient = torch.randn(shape, generator=generator)

    def kept(self) -> int:
        """Return the bytes that a micro-batch keeps between its forward and its backward."""
        live = LiveBytes()
        with live:
            self._forward(0)
            kept = live.bytes
        self._stage.backward(0, [self._gradient])
        return kept

    def step(self) -> None:
        """Do the forward and the backward of every micro-batch."""
        for number in range(self._micro_batches):
            self._forward(number)
            self._stage.backward(number, [self._gradient])

    def _forward(self, number: int) -> None:
        self._stage.forward(number, [self._input.detach().requires_grad_()], 0)


def main() -> None:
    """Measure as the command line says, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m trainer.bench.recompute", description=__doc__)
    for field in fields(Work):
        if field.name not in ("stages", "replicas", "vocabulary"):
            name = f"--{field.name.replace('_', '-')}"
            parser.add_argument(name, type=int, default=field.default, help="of the blocks that compute")
    parser.add_argument("--rounds", type=int, default=15)
    given = vars(parser.parse_args())
    rounds = given.pop("rounds")
    torch.set_num_threads(1)
    work = Work(**given)
    blocks = {recompute: Blocks(work, recompute) for recompute in Recompute}
    seconds: dict[Recompute, list[float]] = {recompute: [] for recompute in Recompute}
    for _ in range(rounds + 1):  # the first one warms up
        for recompute, stage in blocks.items():
            start = time.process_time()
            stage.step()
            seconds[recompute].append(time.process_time() - start)
    kept = {recompute: stage.kept() for recompute, stage in blocks.items()}
    print(f"{work.blocks} blocks of width {work.width}; CPU time over that of none, median (95 % interval)")
    for recompute in Recompute:
        pairs = zip(seconds[recompute][1:], seconds[Recompute.NONE][1:], strict=True)
        ratio = median_interval([more / less for more, less in pairs])
        share = kept[recompute] / kept[Recompute.NONE]
        print(f"  {recompute.value:10} keeps {size_text(kept[recompute]):>10} ({share:6.1%})  time {ratio}")


if __name__ == "__main__":
    main()
