"""This trainer as a contestant: its own run and steps, on whatever the command line configures.

    TRAINER_BENCH_SOCKET=... horovodrun -np 2 python -m trainer.bench.ours layout.stages=2 ...

With `TRAINER_BENCH_FREE` set it runs free: after two true steps every receive is answered at once, with what
the second one received. The same ranks then do the same actions at the same time and never wait for one
another but at the step's end: no schedule of these actions on this machine can be faster.
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


def main() -> None:
    """Train for as long as steps are ordered."""
    run_command(_contest)


def _contest(config: Config, world: "World") -> None:
    from trainer.bench.free_running import FreeTransport  # noqa: PLC0415  (after the configuration is right)
    from trainer.run import Run  # noqa: PLC0415
    from trainer.step import TrainStep  # noqa: PLC0415

    run = Run(config, world)
    stepper = TrainStep(run, steps=1_000_000)
    numbers = count(1)

    def step() -> None:
        number = next(numbers)
        stepper.run(number, (number - 1) * config.batch.global_size)

    if os.environ.get(FREE):
        step()
        recorder = FreeTransport(run.engine.remote)
        run.engine.remote = recorder
        step()
        recorder.free = True
    serve(world.rank, world.all_gather_objects, step)
    world.barrier()  # a rank that left early would take Horovod away from the others


if __name__ == "__main__":
    main()
