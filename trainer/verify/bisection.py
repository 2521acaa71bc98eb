"""Which operation of which layer makes a difference: for a verification that failed.

In model order, every layer runs three times on the same inputs, weights and seeds:

    [1] in the reference
    [2] once more there
    [3] in the process of the launch that owns it

The first operation whose result is not the same each time is where the layer depends on something else: on
its history, on unseeded numbers, on the time or on the process.
"""

import pickle
from collections.abc import Mapping, Sequence, Set
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from trainer.activation import Activation
from trainer.pipeline.micro_batches import read_samples
from trainer.pipeline.precision import COMPUTE_TYPES, Precision
from trainer.run import Run
from trainer.verify.operations import Operation, run_recorded


def find_operation(run: Run, modules: Mapping[str, nn.Module], step: int, skipped: Set[str]) -> str | None:
    """Return what the first layer that differs by itself does differently; None if none does, or elsewhere.

    Every rank must call it.

    Args:
        run: This rank's part of the launch.
        modules: The reference's modules by layer, on rank 0; elsewhere nothing.
        step: The step whose seeds to use.
        skipped: Layers whose weights differ already, on rank 0.
    """
    if run.replica > 0:
        return None
    group, layout = run.groups.model_parallel, run.plan.layout
    mine = {layer.index: layer.module for layer in run.layers}
    run.randomness.step, run.randomness.first_micro_batch = step, 0
    activation: Activation = None
    if group.rank == 0:
        samples = np.arange(run.config.batch.micro_size) % len(run.data.training)
        (activation,) = read_samples(run.data.training.inputs, [samples], run.randomness)
    found: str | None = None
    for index, stage in enumerate(run.plan.partition.stage_of):
        name, owner = run.model.layers[index].name, layout.group_rank_of(stage)
        if group.rank == 0:
            taken = activation
            first, activation = _trace(run, name, modules[name], taken)
            second, _ = _trace(run, name, modules[name], taken)
            if owner == 0:
                third, _ = _trace(run, name, mine[index], taken)
            else:
                group.send_bytes(pickle.dumps(_moved(taken, torch.device("cpu"))), owner)
                third = pickle.loads(group.receive_bytes(owner))
            if found is None and name not in skipped:
                found = _difference(name, first, second, third, owner)
        elif group.rank == owner:
            taken = pickle.loads(group.receive_bytes(0))
            group.send_bytes(pickle.dumps(_trace(run, name, mine[index], taken)[0]), 0)
    return found


def _trace(run: Run, name: str, module: nn.Module, taken: Activation) -> tuple[list[Operation], Activation]:
    """Run a layer as the launch and the reference do; return its operations and its output."""
    precision = Precision(COMPUTE_TYPES[run.config.precision])
    device = next((tensor.device for tensor in module.parameters()), run.devices[0])
    run.randomness.seed_layer(name, 0, device)
    module.train()
    with torch.enable_grad(), precision.autocast(device):
        operations, output = run_recorded(module, _moved(taken, device))
    passed = tree_map(
        lambda leaf: precision.between_layers(leaf).contiguous() if isinstance(leaf, Tensor) else leaf, output
    )
    return operations, passed


def _difference(
    name: str, first: Sequence[Operation], second: Sequence[Operation], third: Sequence[Operation], owner: int
) -> str | None:
    """Return the first operation that differs, in words."""
    runs = (
        (second, "gives other results when it runs again"),
        (third, f"gives other results on rank {owner} than in the reference"),
    )
    for other, what in runs:
        for one, another in zip_longest(first, other):
            if one is not None and another is not None and one.kernel == another.kernel:
                if one.digest == another.digest:
                    continue
                where = f"first in {one.kernel}"
            else:
                kernels = [each.kernel if each is not None else "nothing" for each in (one, another)]
                where = f"first with {kernels[1]} where it did {kernels[0]}"
            places = [each.place for each in (one, another) if each is not None and each.place]
            place = f" ({places[0]})" if places else ""
            return f"layer {name!r} {what}, from the same inputs, weights and seeds: {where}{place}"
    return None


def _moved(activation: Activation, device: torch.device) -> Any:
    return tree_map(
        lambda leaf: leaf.detach().to(device, copy=True) if isinstance(leaf, Tensor) else leaf, activation
    )
