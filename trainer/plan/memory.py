"""What a rank holds, and what its layers compute again so that it fits `memory.limit`."""

from dataclasses import dataclass, replace

from trainer.config.sizes import size_text
from trainer.errors import UserError
from trainer.pipeline.recomputation import Recompute
from trainer.plan.stages import Partition
from trainer.replication.sharding import largest_shard
from trainer.schedule.actions import Schedule
from trainer.schedule.peak_memory import StageBytes, peak_live_bytes, peak_of_worker

_POSTED = 2  # messages that a stage may have under way at either end, each way


@dataclass(frozen=True)
class Memory:
    """The bytes that each rank of a group holds, predicted.

    Attributes:
        fixed: Weights, gradients, optimizer state and messages.
        activations: The most that is kept for backwards at one time.
    """

    fixed: tuple[int, ...]
    activations: tuple[int, ...]

    def total(self, rank: int) -> int:
        """Return what a rank holds at most."""
        return self.fixed[rank] + self.activations[rank]


def predict(partition: Partition, schedule: Schedule, state: float, shards: int = 1) -> Memory:
    """Return what each rank of a group holds.

    Temporary memory within an action, such as the gradients between two kernels, is not counted, nor is what
    libraries need.

    Args:
        partition: The layers of each stage, and what they recompute.
        schedule: A list for every rank.
        state: Numbers that the optimizer keeps for each weight that trains.
        shards: Among how many replicas the optimizer's state is divided; the largest shard counts.
    """
    activations = peak_live_bytes(schedule, stage_bytes(partition))
    return Memory(tuple(fixed_bytes(partition, schedule, state, shards)), activations)


def fixed_bytes(partition: Partition, schedule: Schedule, state: float, shards: int = 1) -> list[int]:
    """Return the bytes of each rank's weights, gradients, optimizer state and messages: see `predict`."""
    ranks = len(schedule.workers)
    fixed, trained = [0] * ranks, [list[int]() for _ in range(ranks)]
    for stage, rank in enumerate(schedule.placement):
        costs = [partition.costs[layer] for layer in partition.stages[stage]]
        fixed[rank] += sum(cost.parameter_bytes for cost in costs)
        trained[rank] += [size for cost in costs for size in cost.trained_bytes.values()]
        if ranks > 1:
            fixed[rank] += 2 * _POSTED * (_input_bytes(partition, stage) + costs[-1].output_bytes)
    for rank, sizes in enumerate(trained):
        fixed[rank] += sum(sizes) + int(state * largest_shard(sizes, shards))  # gradients and optimizer state
    return fixed


def stage_bytes(partition: Partition) -> list[StageBytes]:
    """Return what each stage holds of a micro-batch."""
    stages = []
    for stage, layers in enumerate(partition.stages):
        kept = [partition.costs[layer].saved_bytes[partition.recompute[layer]] for layer in layers]
        whole = [partition.costs[layer].saved_bytes[Recompute.NONE] for layer in layers]
        stages.append(
            StageBytes(
                kept=_input_bytes(partition, stage) + sum(kept),
                deferred=sum(partition.costs[layer].deferred_bytes for layer in layers),
                # A layer that computes again holds all of it meanwhile; they do so one by one.
                backward=max(max(0, more - less) for more, less in zip(whole, kept, strict=True)),
            )
        )
    return stages


def fit(partition: Partition, schedule: Schedule, state: float, limit: int, shards: int = 1) -> Partition:
    """Return the partition with layers that compute again, so that every rank holds `limit` bytes at most.

    Layer by layer, whatever frees most memory for the time that it takes, until it fits: within one layer's
    time of the least.

    Args:
        partition: The layers of each stage; nothing is computed again yet.
        schedule: A list for every rank.
        state: Numbers that the optimizer keeps for each weight.
        limit: Bytes.
        shards: Among how many replicas the optimizer's state is divided.

    Raises:
        UserError: It does not fit even if every layer keeps its inputs alone.
    """
    fixed = fixed_bytes(partition, schedule, state, shards)
    for rank in range(len(schedule.workers)):
        mine = [stage for stage, holder in enumerate(schedule.placement) if holder == rank]
        layers = [layer for stage in mine for layer in partition.stages[stage]]
        while (needed := fixed[rank] + peak_of_worker(schedule, rank, stage_bytes(partition))) > limit:
            choices = [choice for layer in layers for choice in _more(partition, layer)]
            if not choices:
                raise UserError(
                    f"memory.limit={size_text(limit)} is too little: rank {rank} of a group needs "
                    f"{size_text(needed)} even where all its layers compute everything again; use more "
                    "stages (layout.stages), a smaller batch.micro_size, or a larger limit"
                )
            partition = min(choices, key=lambda choice: choice[0])[1]
    return partition


def _more(partition: Partition, layer: int) -> list[tuple[float, Partition]]:
    """Return the ways for a layer to compute more again, each with its time for a byte that it frees."""
    cost, now = partition.costs[layer], partition.recompute[layer]
    ways = []
    for recompute in Recompute:
        freed = cost.saved_bytes[now] - cost.saved_bytes[recompute]
        if freed > 0:
            modes = (*partition.recompute[:layer], recompute, *partition.recompute[layer + 1 :])
            ways.append(
                (
                    (cost.recompute_time(recompute) - cost.recompute_time(now)) / freed,
                    replace(partition, recompute=modes),
                )
            )
    return ways


def _input_bytes(partition: Partition, stage: int) -> int:
    """Return the size of what a stage takes from the one before."""
    first = partition.stages[stage][0]
    return partition.costs[first - 1].output_bytes if first else 0
