"""A sharded optimizer: each replica has the state of some parameters, steps these, and hands them round.

That is the first stage of ZeRO (Rajbhandari et al., 2020), with whole parameters dealt to the replicas:

    gradients           averaged as ever [1]: every replica has all of them
    norm, clipping      as ever
    optimizer's step    of this replica's parameters
    weights             from the replica that has stepped them to all others [2]

[1] A reduce-scatter would send half as much as an all-reduce. But it adds in another order, which from three
replicas on gives other bits; the norm would need a sum more; and an all-reduce hides behind the drain.
[2] An all-gather a layer, which sends half as much as an all-reduce; Horovod joins small ones. It does not
join broadcasts, one for each parameter: they took 4 to 10 times as long (100 parameters, 2 and 4 replicas on
2 cores). For a moment there are two copies of the weights, when activations have given their memory back.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from trainer.distributed.oversubscription import horovod_has_work
from trainer.distributed.waiting import WaitMeter
from trainer.distributed.world import horovod
from trainer.pipeline.layer import BuiltLayer


def assign_parameters(sizes: Sequence[int], shards: int) -> list[int]:
    """Return the shard of every parameter: the largest first, each goes to the shard that has least so far.

    So no shard has more than the total / shards + the largest (Graham, 1969). Of equal parameters the earlier
    one goes first; of equal shards the first one gets it.

    Args:
        sizes: Those of the parameters.
        shards: How many there are.
    """
    held, shard_of = [0] * shards, [0] * len(sizes)
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        shard_of[i] = held.index(min(held))
        held[shard_of[i]] += sizes[i]
    return shard_of


def largest_shard(sizes: Sequence[int], shards: int) -> int:
    """Return the total size of the shard that has most, as `assign_parameters` divides them."""
    held = [0] * shards
    for size, shard in zip(sizes, assign_parameters(sizes, shards), strict=True):
        held[shard] += size
    return max(held)


class Shards:
    """The parameters that a rank trains, copies of tied ones too, dealt to its replicas by their bytes.

    Args:
        layers: The rank's layers, the same ones on every replica.
        number: How many shards there are: one for each replica, or one of everything for all of them.
        own: This rank's shard.
        meter: Counts the time that this rank waits for the other replicas' weights.

    Attributes:
        number: How many shards there are.
        bytes: The size of all these parameters.
        own_bytes: The size of those in this rank's shard.
    """

    def __init__(self, layers: Sequence[BuiltLayer], number: int, own: int, meter: WaitMeter) -> None:
        self.number = number
        self._meter = meter
        self._own = own
        trained = [(layer, p) for layer in layers for p in layer.module.parameters() if p.requires_grad]
        shards = assign_parameters([parameter.nbytes for _, parameter in trained], number)
        self._shard_of = {parameter: shard for (_, parameter), shard in zip(trained, shards, strict=True)}
        self._gathers: dict[str, list[list[nn.Parameter]]] = {}  # by name: parameters of one type, by shard
        for layer, parameter in trained:
            name = f"weights.{layer.name}.{parameter.dtype}"
            parts = self._gathers.setdefault(name, [[] for _ in range(number)])
            parts[self._shard_of[parameter]].append(parameter)
        self.bytes = sum(parameter.nbytes for parameter in self._shard_of)
        self.own_bytes = sum(parameter.nbytes for parameter in self._shard_of if self.has(parameter))

    def has(self, parameter: nn.Parameter) -> bool:
        """Return whether a parameter that trains is in this rank's shard."""
        return self._shard_of[parameter] == self._own

    @torch.no_grad()
    def exchange(self) -> None:
        """Give the weights of this rank's shard to the other replicas, and take theirs, without spinning."""
        if self.number == 1:
            return
        library = horovod()
        horovod_has_work.set()
        under_way = [
            (parts, library.allgather_async(_joined(parts, self._own), name=name))
            for name, parts in self._gathers.items()
        ]
        for parts, handle in under_way:
            self._meter.wait(partial(library.poll, handle))
            _take(parts, library.synchronize(handle))
        horovod_has_work.clear()


def _joined(parts: Sequence[Sequence[nn.Parameter]], shard: int) -> Tensor:
    """Return the bytes of a shard's parameters, concatenated; it may have none.

    Bytes, because Horovod does not have every type of a weight (bfloat16, complex numbers).
    """
    some = next(parameter for part in parts for parameter in part)
    numbers = torch.cat([some.new_empty(0), *(parameter.reshape(-1) for parameter in parts[shard])])
    return numbers.view(torch.uint8)


def _take(parts: Sequence[Sequence[nn.Parameter]], gathered: Tensor) -> None:
    """Put the concatenated bytes of all shards into their parameters."""
    parameters = [parameter for part in parts for parameter in part]
    numbers = gathered.view(parameters[0].dtype).split_with_sizes([each.numel() for each in parameters])
    for parameter, its_numbers in zip(parameters, numbers, strict=True):
        parameter.copy_(its_numbers.view_as(parameter))
