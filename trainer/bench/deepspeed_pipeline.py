"""The GPT under DeepSpeed's pipeline engine on CPU: a contestant, one process a rank.

It runs in an environment of its own, with deepspeed, torch, numpy and omegaconf; no launcher is needed:

    DS_ACCELERATOR=cpu RANK=0 LOCAL_RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=29500 \
        TRAINER_BENCH_SOCKET=... python -m trainer.bench.deepspeed_pipeline \
        '{"stages": 2, "replicas": 1, "blocks": 8, "width": 256, "heads": 8, "context": 128,
          "vocabulary": 256, "micro_batch": 2, "micro_batches": 8, "boundaries": [5], "seed": 0}'

`boundaries` are the first layers of each stage but the first; `micro_batches` is of one replica. Ranks are
counted as DeepSpeed does, replicas within a stage. Every step trains on the same random tokens, in float32.
"""

import contextlib
import io
import json
import logging
import sys
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from itertools import cycle, pairwise
from typing import Any

import deepspeed
import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from deepspeed.pipe import LayerSpec, PipelineModule
from numpy.typing import NDArray
from torch import Tensor, nn

from trainer.bench.contestant import serve
from trainer.config import GPTConfig
from trainer.data.dataset import Data
from trainer.models.gpt import gpt
from trainer.models.model import Layer
from trainer.seeds import derive

_PATIENCE = timedelta(days=1)  # between two orders, while other contestants have their turns


def main() -> None:
    """Train with DeepSpeed for as long as steps are ordered."""
    given = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    deepspeed.utils.logger.setLevel(logging.ERROR)
    # Else it would spend a minute compiling an all-reduce that only its tensor parallelism calls.
    deepspeed.ops.__compatible_ops__ = {}
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False, timeout=_PATIENCE)
    try:
        tokens = RandomTokens(given)
        data = Data(tokens, tokens, fingerprint="", vocabulary=given["vocabulary"])
        with contextlib.redirect_stdout(io.StringIO()):  # it prints the partition, whatever the log's level
            engine = _engine(given, data)
        batches = _micro_batches(given, data, engine.grid.get_data_parallel_rank())
        serve(dist.get_rank(), _gather, partial(engine.train_batch, batches))
    finally:
        dist.destroy_process_group()


class RandomTokens:
    """As many random samples as one step takes, of all replicas."""

    def __init__(self, given: dict[str, Any]) -> None:
        samples = given["replicas"] * given["micro_batches"] * given["micro_batch"]
        generator = torch.Generator().manual_seed(derive(given["seed"], "data"))
        size = (samples, given["context"] + 1)
        self._tokens = torch.randint(given["vocabulary"], size, generator=generator)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._tokens)

    def inputs(self, samples: NDArray[np.int64]) -> Tensor:
        """Return int64 tokens [samples, context]."""
        return self._tokens[torch.from_numpy(samples), :-1]

    def targets(self, samples: NDArray[np.int64]) -> Tensor:
        """Return the tokens that follow them, [samples, context]."""
        return self._tokens[torch.from_numpy(samples), 1:]


class Stage(nn.Sequential):
    """Consecutive layers, with the weights that the trainer gives them."""

    def __init__(self, layers: tuple[Layer, ...], seed: int) -> None:
        modules = []
        for layer in layers:
            torch.manual_seed(derive(seed, "weights", layer.name))
            modules.append(layer.build())
        super().__init__(*modules)


def _engine(given: dict[str, Any], data: Data) -> Any:
    """Return DeepSpeed's engine, set to its fastest on CPU."""
    names = "blocks", "width", "heads", "context"
    model = gpt(GPTConfig(**{name: given[name] for name in names}, dropout=0.0, tied=False), data)
    firsts = [0, *given["boundaries"], len(model.layers)]
    # No partition method of DeepSpeed takes boundaries; so each of its layers is a whole stage of ours.
    stages = [LayerSpec(Stage, model.layers[first:last], given["seed"]) for first, last in pairwise(firsts)]
    module = PipelineModule(stages, num_stages=given["stages"], loss_fn=_loss, partition_method="uniform")
    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=torch.optim.AdamW(module.parameters(), lr=1e-4, weight_decay=0.1, fused=True),
        config={
            "train_micro_batch_size_per_gpu": given["micro_batch"],
            "gradient_accumulation_steps": given["micro_batches"],
            "steps_per_print": sys.maxsize,
            "wall_clock_breakdown": False,
            "timers": {"throughput": {"enabled": False}},
        },
    )
    # A replica alone has nobody to average with, but would copy all gradients twice and call gloo.
    engine.pipeline_enable_backward_allreduce = given["replicas"] > 1
    return engine


def _micro_batches(given: dict[str, Any], data: Data, replica: int) -> Iterator[tuple[Any, Any]]:
    """Return a replica's inputs and targets, the same in every step."""
    count, size = given["micro_batches"], given["micro_batch"]
    samples = np.arange(count * size).reshape(count, size) + replica * count * size
    return cycle([(data.training.inputs(part), data.training.targets(part)) for part in samples])


def _loss(logits: Tensor, tokens: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, -2), tokens.flatten())


def _gather(value: Any) -> list[Any]:
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


if __name__ == "__main__":
    main()
