"""`python -m trainer.bench.recompute`: the memory that recomputation saves, and the time that it costs.

GPT blocks form the only stage of one process. The bench counts every tensor that a micro-batch keeps between
its forward and its backward, and compares the time of a step with that without recomputation, measured
alternately.
"""

import argparse
import time
from dataclasses import fields

import torch

from trainer.bench.gpt import Work
from trainer.bench.lone_stage import LoneStage
from trainer.bench.statistics import median_interval
from trainer.config.sizes import size_text
from trainer.pipeline.recomputation import Recompute
from trainer.pipeline.tensor_bytes import LiveBytes


def kept(stage: LoneStage) -> int:
    """Return the bytes that a micro-batch keeps between its forward and its backward."""
    live = LiveBytes()
    with live:
        stage.forward(0)
        size = live.bytes
    stage.backward(0)
    return size


def step(stage: LoneStage, micro_batches: int) -> None:
    """Run the forward and the backward of every micro-batch."""
    for number in range(micro_batches):
        stage.forward(number)
        stage.backward(number)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m trainer.bench.recompute", description=__doc__)
    for field in fields(Work):
        if field.name not in ("stages", "replicas", "vocabulary"):
            name = f"--{field.name.replace('_', '-')}"
            parser.add_argument(name, type=int, default=field.default, help="size of the work")
    parser.add_argument("--rounds", type=int, default=15)
    given = vars(parser.parse_args())
    rounds = given.pop("rounds")
    torch.set_num_threads(1)
    work = Work(**given)
    stages = {recompute: LoneStage(work, recompute) for recompute in Recompute}
    seconds: dict[Recompute, list[float]] = {recompute: [] for recompute in Recompute}
    for _ in range(rounds + 1):  # the first one warms up
        for recompute, stage in stages.items():
            start = time.process_time()
            step(stage, work.micro_batches)
            seconds[recompute].append(time.process_time() - start)
    sizes = {recompute: kept(stage) for recompute, stage in stages.items()}
    print(f"{work.blocks} blocks of width {work.width}; CPU time over that of none, median (95 % interval)")
    for recompute in Recompute:
        pairs = zip(seconds[recompute][1:], seconds[Recompute.NONE][1:], strict=True)
        ratio = median_interval([more / less for more, less in pairs])
        share = sizes[recompute] / sizes[Recompute.NONE]
        print(f"  {recompute.value:10} keeps {size_text(sizes[recompute]):>10} ({share:6.1%})  time {ratio}")


if __name__ == "__main__":
    main()
