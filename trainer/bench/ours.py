"""This trainer as a contestant: it runs steps of the run that the command line configures.

    TRAINER_BENCH_SOCKET=... horovodrun -np 2 python -m trainer.bench.ours layout.stages=2 ...

With `TRAINER_BENCH_FREE` set it runs free: after two real steps every receive is answered immediately, with
the message of the second step. The same ranks then do the same actions at the same time, and wait for one
another only at the end of a step. No schedule of these actions can be faster on this machine.

With `TRAINER_BENCH_EVALUATE` set, a step is an evaluation of the validation samples.
"""

import os
from itertools import count
from typing import TYPE_CHECKING

from trainer.bench.contestant import serve
from trainer.command import run_command
from trainer.config.schema import Config

if TYPE_CHECKING:
    from trainer.distributed.world import World

FREE = "TRAINER_BENCH_FREE"
EVALUATE = "TRAINER_BENCH_EVALUATE"


def main() -> None:
    """Train until the contest is over."""
    run_command(_contest)


def _contest(config: Config, world: "World") -> None:
    from trainer.bench.free_running import FreeTransport  # noqa: PLC0415  (after the configuration has been checked)
    from trainer.evaluation import evaluate  # noqa: PLC0415
    from trainer.run import Run  # noqa: PLC0415
    from trainer.step import TrainStep  # noqa: PLC0415

    run = Run(config, world)
    train_step = TrainStep(run, steps=1_000_000)
    numbers = count(1)

    def step() -> None:
        number = next(numbers)
        train_step.run(number, (number - 1) * config.batch.global_size)

    if os.environ.get(FREE):
        step()
        recorder = FreeTransport(run.engine.remote)
        run.engine.remote = recorder
        step()
        recorder.free = True

    def inference() -> None:
        evaluate(run, 0)

    serve(world.rank, world.all_gather_objects, inference if os.environ.get(EVALUATE) else step)
    world.barrier()  # a rank that exits early would shut Horovod down for the others


if __name__ == "__main__":
    main()
