"""The GPT on DeepSpeed's pipeline engine, on CPU: a contestant with one process a rank.

It runs in a separate environment with deepspeed, torch, numpy and omegaconf, and needs no launcher:

    DS_ACCELERATOR=cpu RANK=0 LOCAL_RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=29500 \
        TRAINER_BENCH_SOCKET=... python -m trainer.bench.deepspeed_pipeline '{"stages": 2}'

Ranks are numbered as in DeepSpeed, by stage first and then by replica. Every step trains on the same random
tokens, in float32.
"""

import contextlib
import io
import json
import logging
import sys
from functools import partial
from itertools import cycle
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.pipe import LayerSpec, PipelineModule

from trainer.bench.contestant import serve
from trainer.bench.gpt import Part, Work, adamw, mean_loss
from trainer.bench.torch_groups import PATIENCE, gather


def main() -> None:
    """Train with DeepSpeed until the contest is over."""
    work = Work(**json.loads(sys.argv[1]))
    torch.set_num_threads(1)
    deepspeed.utils.logger.setLevel(logging.ERROR)
    # Otherwise it spends a minute compiling an all-reduce that only its tensor parallelism calls.
    deepspeed.ops.__compatible_ops__ = {}
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False, timeout=PATIENCE)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints the partition at any log level
            engine = _engine(work)
        batches = work.micro_batches_of(engine.grid.get_data_parallel_rank())
        serve(dist.get_rank(), gather, partial(engine.train_batch, cycle(batches)))
    finally:
        dist.destroy_process_group()


def _engine(work: Work) -> Any:
    """Return DeepSpeed's engine with its fastest settings on CPU."""
    # No partition method of DeepSpeed takes boundaries, so each of its layers is a full stage of ours.
    stages = [LayerSpec(Part, layers) for layers in work.parts(range(work.stages))]
    module = PipelineModule(stages, num_stages=work.stages, loss_fn=mean_loss, partition_method="uniform")
    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=adamw(module),
        config={
            "train_micro_batch_size_per_gpu": work.micro_batch,
            "gradient_accumulation_steps": work.micro_batches,
            "steps_per_print": sys.maxsize,
            "wall_clock_breakdown": False,
            "timers": {"throughput": {"enabled": False}},
        },
    )
    # A single replica averages nothing, but would still copy all gradients twice and call gloo.
    engine.pipeline_enable_backward_allreduce = work.replicas > 1
    return engine


if __name__ == "__main__":
    main()
