"""The GPT on torch.distributed.pipelining and DistributedDataParallel: a contestant.

It runs one process a rank:

    RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=29500 TRAINER_BENCH_SOCKET=... \
        python -m trainer.bench.torch_pipeline 1f1b '{"stages": 2}'

The ranks of a pipeline are contiguous, as the trainer's are. With one stage it is plain
DistributedDataParallel (DDP), which accumulates micro-batches and sends with the last one. Neither this nor a
pipeline can set `static_graph=True`, because DDP must then send in the first backward.

In replicated pipelines of torch 2.13, DDP rebuilds its buckets and fails in the second step of every schedule
but 1F1B, unless it looks for unused parameters. If a schedule splits backwards, DDP never sees the weight
gradients, and replicas drift apart silently. So these schedules average after the step, without DDP.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Sequence
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
LOOPED = {  # rank r holds stages r and r + p
    "interleaved": ScheduleInterleaved1F1B,
    "looped_bfs": ScheduleLoopedBFS,
    "interleaved_zb": ScheduleInterleavedZeroBubble,
}
SPLIT = ("interleaved_zb", "zb_v", "dual_pipe_v")  # schedules that split backwards
V = {"zb_v": ScheduleZBVZeroBubble, "dual_pipe_v": ScheduleDualPipeV}  # rank r holds stages r and 2 p - 1 - r
SCHEDULES = (*ONE_STAGE, *LOOPED, *V)

Step = Callable[[], None]


def main() -> None:
    """Train with torch until the contest is over."""
    name, work = sys.argv[1], Work(**json.loads(sys.argv[2]))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        serve(dist.get_rank(), gather, _pipeline(name, work) if work.stages > 1 else _replicas(work))
    finally:
        dist.destroy_process_group()


def _replicas(work: Work) -> Step:
    """Return the step of plain data parallelism."""
    (layers,) = work.parts([0])
    model: nn.Module = Part(layers)
    if work.replicas > 1:
        model = DistributedDataParallel(model, gradient_as_bucket_view=True)
    optimizer = adamw(model)
    batches = work.micro_batches_of(dist.get_rank())

    def step() -> None:
        for number, (x, y) in enumerate(batches):
            last = number == len(batches) - 1
            accumulates = isinstance(model, DistributedDataParallel) and not last
            with model.no_sync() if accumulates else contextlib.nullcontext():  # type: ignore[operator]
                (mean_loss(model(x), y) / len(batches)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


def _pipeline(name: str, work: Work) -> Step:
    """Return the step of a pipeline, or of several replicas."""
    rank, p = dist.get_rank(), work.stages
    replica, position = divmod(rank, p)
    pipelines = [dist.new_group(list(range(r * p, (r + 1) * p))) for r in range(work.replicas)]
    rings = [dist.new_group(list(range(position, work.ranks, p))) for position in range(p)]
    placed = placement(name, p)
    held = [stage for stage, holder in enumerate(placed) if holder == position]
    parts = work.parts(placed)
    modules = [Part(parts[stage]) for stage in held]
    wrapped = [_replicated(name, module, rings[position], work.replicas) for module in modules]
    stages = [
        PipelineStage(module, stage, len(parts), torch.device("cpu"), group=pipelines[replica])
        for module, stage in zip(wrapped, held, strict=True)
    ]
    schedule = _schedule(name, stages, work.micro_batches)
    held_modules = nn.ModuleList(modules)
    optimizer, parameters = adamw(held_modules), list(held_modules.parameters())
    batch, targets = work.batch(replica)
    first, last = 0 in held, len(parts) - 1 in held

    def step() -> None:
        inputs = (batch,) if first else ()
        losses: list[Tensor] = []
        schedule.step(*inputs, target=targets if last else None, losses=losses, return_outputs=False)
        if work.replicas > 1 and name in SPLIT:
            _average(parameters, rings[position])
        optimizer.step()
        optimizer.zero_grad()

    return step


def _replicated(name: str, module: nn.Module, ring: dist.ProcessGroup, replicas: int) -> nn.Module:
    """Return a stage's module, wrapped in DDP if DDP can average its gradients."""
    if replicas == 1 or name in SPLIT:
        return module
    return DistributedDataParallel(
        module,
        process_group=ring,
        gradient_as_bucket_view=True,
        find_unused_parameters=name != "1f1b",
    )


def _average(parameters: Sequence[Tensor], ring: dist.ProcessGroup) -> None:
    """Average all gradients over a group in one message."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    together = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(together, group=ring)
    together /= ring.size()
    means = together.split_with_sizes([gradient.numel() for gradient in gradients])
    for gradient, mean in zip(gradients, means, strict=True):
        gradient.copy_(mean.view_as(gradient))


def placement(name: str, p: int) -> list[int]:
    """Return the rank of the pipeline that holds each stage in one of torch's schedules."""
    ascending = list(range(p))
    if name in ONE_STAGE:
        return ascending
    return ascending + ascending if name in LOOPED else ascending + ascending[::-1]


def _schedule(name: str, stages: list[PipelineStage], micro_batches: int) -> Any:
    def share_of_mean(logits: Tensor, tokens: Tensor) -> Tensor:
        return mean_loss(logits, tokens) / micro_batches

    # Scale the loss, as ours does; otherwise torch scales all gradients in another pass over them.
    settings: dict[str, Any] = {"loss_fn": share_of_mean, "scale_grads": False}
    if name in ONE_STAGE:
        return ONE_STAGE[name](stages[0], micro_batches, **settings)
    return (LOOPED | V)[name](stages, micro_batches, **settings)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
