r"""The sleeping layers on torch.distributed.pipelining: one process a rank, by torch's launcher.

    python -m torch.distributed.run --nproc-per-node 8 \
        -m trainer.bench.torch_schedule '{"micro_batches": [8]}'

For every schedule and number of micro-batches rank 0 prints a line of JSON: the seconds of every step, and
how often each of its layers slept for a forward, an input gradient and a weight gradient in the last step.
"""

import json
import sys
import time
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
    ScheduleZBVZeroBubble,
)
from torch.distributed.pipelining.schedules import PipelineScheduleSingle

from trainer.bench.sleeping import Sleep, SleepingLayer
from trainer.schedule.resolve import resolve

SCHEDULES: dict[str, Any] = {
    "gpipe": ScheduleGPipe,
    "1f1b": Schedule1F1B,
    "zb_h1": ScheduleInterleavedZeroBubble,  # with one stage per rank
    "interleaved": ScheduleInterleaved1F1B,
    "zb_v": ScheduleZBVZeroBubble,
}


def main() -> None:
    """Run every schedule with every number of micro-batches."""
    given = {"steps": 5, "floats": 256, "sleep": {}, "schedules": list(SCHEDULES)} | json.loads(sys.argv[1])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    try:
        for name in given["schedules"]:
            for micro_batches in given["micro_batches"]:
                _measure(name, micro_batches, given)
    finally:
        dist.destroy_process_group()


def _measure(name: str, micro_batches: int, given: dict[str, Any]) -> None:
    rank, sleep = dist.get_rank(), Sleep(**given["sleep"])
    placement = resolve(name).placement(dist.get_world_size())
    layers = {stage: SleepingLayer(sleep) for stage, holder in enumerate(placement) if holder == rank}
    stages = [
        PipelineStage(layer, stage, len(placement), torch.device("cpu")) for stage, layer in layers.items()
    ]
    takes_one = issubclass(SCHEDULES[name], PipelineScheduleSingle)
    schedule = SCHEDULES[name](stages[0] if takes_one else stages, micro_batches, loss_fn=_loss)
    batch, target = torch.ones(micro_batches, given["floats"]), torch.zeros(micro_batches)
    optimizer = torch.optim.SGD([layer.weight for layer in layers.values()], lr=0.01)
    seconds = []
    for _ in range(given["steps"] + 1):  # the first one warms up
        dist.barrier()
        for layer in layers.values():
            layer.slept.clear()
        start = time.perf_counter()
        inputs = (batch,) if 0 in layers else ()
        if len(placement) - 1 in layers:
            schedule.step(*inputs, target=target, losses=[])
        else:
            schedule.step(*inputs)
        optimizer.step()
        optimizer.zero_grad()
        dist.barrier()
        seconds.append(time.perf_counter() - start)
    if rank == 0:
        found = {
            "schedule": name,
            "micro_batches": micro_batches,
            "seconds": seconds[1:],
            "slept": [layer.slept for layer in layers.values()],
        }
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()


def _loss(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.mse_loss(output.mean(1), target)


if __name__ == "__main__":
    main()
