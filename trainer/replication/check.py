"""The check that replicas, and the copies of tied parameters, hold the same weights.

Gradients are averaged, weights are not: replicas that begin with different weights, or whose updates once
differ, never meet again, and the loss does not tell.

before the first step     weights and buffers, to the bit
every n steps             a sum of the weights' bits, which takes a pass over them
"""

from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.distributed.world import Communicator, Groups, differing
from trainer.errors import TrainingError, UserError, listed
from trainer.models.names import plain_buffers, plain_parameters
from trainer.pipeline.layer import BuiltLayer
from trainer.pipeline.tensor_bytes import as_integers, bytes_of


def check_initial(layers: Sequence[BuiltLayer], groups: Groups) -> None:
    """Compare the layers with those of the other replicas, and tied parameters with their owners.

    Args:
        layers: This rank's layers.
        groups: This rank's groups; all their ranks call this.

    Raises:
        UserError: Some differ; on every rank of the group alike.
    """
    remedy = (
        "its initial values depend on more than the layer's seed (an own generator such as "
        "np.random.default_rng(), the time, the rank, a file that differs): draw them from the global "
        "generators of torch, NumPy or Python, which are seeded for every layer, or give the generator a seed"
    )
    ties = _ties(layers, groups.model_parallel)
    replicated, tied = groups.data_parallel.size > 1, {*ties, *ties.values()}
    named = _named(layers, buffers=True)
    exact = {name: _exact(tensor) for name, tensor in named.items() if replicated or name in tied}
    if replicated:
        for name, ranks in _different(exact, groups.data_parallel):
            raise UserError(f"the replicas begin with different weights: {name} {ranks}: {remedy}")
    if ties:
        mine = {name: digest for name, digest in exact.items() if name in tied}
        everywhere = _merged(groups.model_parallel.all_gather_objects(mine))
        for use, owner in ties.items():
            if everywhere[use] != everywhere.get(owner):
                raise UserError(
                    f"the tied parameter {use} does not begin with the weights of {owner}: {remedy}"
                )


def check_equal(layers: Sequence[BuiltLayer], replicas: Communicator, step: int) -> None:
    """Compare the weights after a step with those of the other replicas.

    Raises:
        TrainingError: Some differ; on every rank of the group alike.
    """
    if replicas.size == 1:
        return
    named = _named(layers, buffers=False)
    sums = _sums(list(named.values()))
    mine = dict(zip(named, map(str, sums.tolist()), strict=True))
    everyone = replicas.all_gather(sums, [len(sums)] * replicas.size).reshape(replicas.size, -1)
    if (everyone == everyone[0]).all():
        return
    for name, ranks in _different(mine, replicas):
        raise TrainingError(
            f"the replicas differ after step {step}: {name} {ranks}. Something updates it differently: an "
            "optimizer that draws random numbers or reads the rank, a forward that changes weights, a faulty "
            "device. Resume from a checkpoint of before (train.check_replicas says how often this is checked)"
        )


def _named(layers: Sequence[BuiltLayer], *, buffers: bool) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {}
    for layer in layers:
        of = {**plain_parameters(layer.module), **(plain_buffers(layer.module) if buffers else {})}
        named |= {f"{layer.name}/{name}": tensor.detach() for name, tensor in of.items()}
    return named


def _exact(tensor: Tensor) -> str:
    return blake2b(bytes_of(tensor), digest_size=16).hexdigest()


def _sums(tensors: Sequence[Tensor]) -> NDArray[np.int64]:
    """Return a sum of the bits of each tensor, taken as integers; waits for the device once."""
    if not tensors:
        return np.zeros(0, dtype=np.int64)
    sums = [as_integers(tensor).sum(dtype=torch.int64) for tensor in tensors]
    by_device: dict[torch.device, list[int]] = {}
    for number, each in enumerate(sums):
        by_device.setdefault(each.device, []).append(number)
    found = np.zeros(len(sums), dtype=np.int64)
    for numbers in by_device.values():
        found[numbers] = torch.stack([sums[number] for number in numbers]).cpu().numpy()
    return found


def _different(mine: Mapping[str, str], replicas: Communicator) -> Iterator[tuple[str, str]]:
    """Yield the names of values that are not equal on all replicas, with the replicas that differ."""
    for name, others in differing(replicas.all_gather_objects(dict(mine))):
        yield name, f"differs between replica 0 and {listed('replica', others)}"


def _ties(layers: Sequence[BuiltLayer], group: Communicator) -> dict[str, str]:
    """Return the owner of each tied parameter of the group, by its use."""
    mine = {
        f"{layer.name}/{tie.parameter}": f"{tie.owner}/{tie.owner_parameter}"
        for layer in layers
        for tie in layer.ties
    }
    return _merged(group.all_gather_objects(mine))


def _merged(everyone: Sequence[Mapping[str, str]]) -> dict[str, str]:
    return {key: value for theirs in everyone for key, value in theirs.items()}
