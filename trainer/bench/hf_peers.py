"""A model of transformers on others' parallelism: a contestant, one process a rank.

ddp           torch's DistributedDataParallel
pipeline      torch.distributed.pipelining.pipeline(), which traces the model and splits it, with 1F1B
accelerate    accelerate's prepare_pippy, which is `pipeline()` for inference

RANK=0 WORLD_SIZE=2 ... python -m trainer.bench.hf_peers ddp FOLDER '{"replicas": 2, ...}'
"""

import contextlib
import importlib
import json
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainer.bench.contestant import serve
from trainer.bench.gpt import Work, adamw, mean_loss
from trainer.bench.hf_models import plain
from trainer.bench.torch_groups import PATIENCE, gather

Step = Callable[[], None]


def main() -> None:
    """Train, or infer, until the contest is over."""
    name, folder, work = sys.argv[1], sys.argv[2], Work(**json.loads(sys.argv[3]))
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        serve(dist.get_rank(), gather, _STEPS[name](plain(folder), work))
    finally:
        dist.destroy_process_group()


def _ddp(model: nn.Module, work: Work) -> Step:
    replicated = DistributedDataParallel(model, gradient_as_bucket_view=True)
    optimizer = adamw(replicated)
    batches = work.micro_batches_of(dist.get_rank())

    def step() -> None:
        for number, (x, y) in enumerate(batches):
            last = number == len(batches) - 1
            with contextlib.nullcontext() if last else replicated.no_sync():
                (mean_loss(replicated(x), y) / len(batches)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


def _pipeline(model: nn.Module, work: Work) -> Step:
    from torch.distributed.pipelining import Schedule1F1B, SplitPoint, pipeline  # noqa: PLC0415

    batch, targets = work.batch(0)
    split = {_middle(model, work): SplitPoint.BEGINNING}
    traced = pipeline(model, mb_args=(batch[: work.micro_batch],), split_spec=split)
    rank = dist.get_rank()
    stage = traced.build_stage(rank, torch.device("cpu"))

    def share_of_mean(logits: Tensor, tokens: Tensor) -> Tensor:
        return mean_loss(logits, tokens) / work.micro_batches

    schedule = Schedule1F1B(stage, work.micro_batches, loss_fn=share_of_mean, scale_grads=False)
    optimizer = adamw(stage.submod)

    def step() -> None:
        schedule.step(
            *((batch,) if rank == 0 else ()),
            target=targets if rank else None,
            losses=[],
            return_outputs=False,
        )
        optimizer.step()
        optimizer.zero_grad()

    return step


def _middle(model: nn.Module, work: Work) -> str:
    """Return the path of the block that the second half begins with."""
    inner: Any = model.model
    blocks = "transformer.h" if inner.config.model_type == "gpt2" else "model.layers"
    return f"model.{blocks}.{work.blocks // 2}"


def _accelerate(model: nn.Module, work: Work) -> Step:
    accelerate: Any = importlib.import_module("accelerate")  # not installed with the trainer
    inference: Any = importlib.import_module("accelerate.inference")
    # Otherwise it takes a machine without a GPU for a single process, and every rank runs the first stage.
    accelerate.PartialState(cpu=True)
    batch, _ = work.batch(0)
    prepared = inference.prepare_pippy(
        model.eval(),
        split_points=[_middle(model, work)],
        example_args=(batch[: work.micro_batch],),
        num_chunks=work.micro_batches,
    )

    def step() -> None:
        with torch.no_grad():
            prepared(batch)

    return step


_STEPS: dict[str, Callable[[nn.Module, Work], Step]] = {
    "ddp": _ddp,
    "pipeline": _pipeline,
    "accelerate": _accelerate,
}

if __name__ == "__main__":
    main()
