"""The GPT under torch.distributed.pipelining and DistributedDataParallel: a contestant, one process a rank.

    RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=29500 TRAINER_BENCH_SOCKET=... \
        python -m trainer.bench.torch_pipeline 1f1b '{"stages": 2}'

The ranks of a pipeline are contiguous, as the trainer's are. Without stages to speak of it is plain
DistributedDataParallel that accumulates micro-batches, and sends with the last of them.
"""

import contextlib
import json
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleDualPipeV,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
    ScheduleLoopedBFS,
    ScheduleZBVZeroBubble,
)
from torch.nn.parallel import DistributedDataParallel

from trainer.bench.contestant import serve
from trainer.bench.gpt import Part, Work, adamw, mean_loss
from trainer.bench.torch_groups import PATIENCE, gather

ONE_STAGE = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}
LOOPED = {  # rank r holds the stages r and r + p
    "interleaved": ScheduleInterleaved1F1B,
    "looped_bfs": ScheduleLoopedBFS,
    "interleaved_zb": ScheduleInterleavedZeroBubble,
}
V = {"zb_v": ScheduleZBVZeroBubble, "dual_pipe_v": ScheduleDualPipeV}  # r and 2 p - 1 - r
SCHEDULES = (*ONE_STAGE, *LOOPED, *V)

Step = Callable[[], None]


def main() -> None:
    """Train with torch for as long as steps are ordered."""
    name, work = sys.argv[1], Work(**json.loads(sys.argv[2]))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        serve(dist.get_rank(), gather, _pipeline(name, work) if work.stages > 1 else _replicas(work))
    finally:
        dist.destroy_process_group()


def _replicas(work: Work) -> Step:
    """Return a step of plain data parallelism."""
    (layers,) = work.parts(1)
    model: nn.Module = Part(layers)
    if work.replicas > 1:
        model = DistributedDataParallel(model)
    optimizer = adamw(model)
    batches = work.micro_batches_of(dist.get_rank())

    def step() -> None:
        for number, (x, y) in enumerate(batches):
            last = number == len(batches) - 1
            quiet = isinstance(model, DistributedDataParallel) and not last
            with model.no_sync() if quiet else contextlib.nullcontext():  # type: ignore[operator]
                (mean_loss(model(x), y) / len(batches)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


def _pipeline(name: str, work: Work) -> Step:
    """Return a step of a pipeline, replicated if there are replicas."""
    rank, p = dist.get_rank(), work.stages
    replica, position = divmod(rank, p)
    pipelines = [dist.new_group(list(range(r * p, (r + 1) * p))) for r in range(work.replicas)]
    rings = [dist.new_group(list(range(position, work.ranks, p))) for position in range(p)]
    held = _held(name, position, p)
    parts = work.parts(p if len(held) == 1 else 2 * p)
    modules = [Part(parts[stage]) for stage in held]
    wrapped = [
        DistributedDataParallel(module, process_group=rings[position]) if work.replicas > 1 else module
        for module in modules
    ]
    stages = [
        PipelineStage(module, stage, len(parts), torch.device("cpu"), group=pipelines[replica])
        for module, stage in zip(wrapped, held, strict=True)
    ]
    schedule = _schedule(name, stages, work.micro_batches)
    optimizer = adamw(nn.ModuleList(modules))
    batch, targets = work.batch(replica)
    first, last = 0 in held, len(parts) - 1 in held

    def step() -> None:
        inputs = (batch,) if first else ()
        losses: list[Tensor] = []
        schedule.step(*inputs, target=targets if last else None, losses=losses, return_outputs=False)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _held(name: str, position: int, p: int) -> list[int]:
    """Return the stages that a rank of the pipeline holds."""
    if name in ONE_STAGE:
        return [position]
    return [position, position + p] if name in LOOPED else [position, 2 * p - 1 - position]


def _schedule(name: str, stages: list[PipelineStage], micro_batches: int) -> Any:
    if name in ONE_STAGE:
        return ONE_STAGE[name](stages[0], micro_batches, loss_fn=mean_loss)
    return (LOOPED | V)[name](stages, micro_batches, loss_fn=mean_loss)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
