"""The layout: which rank holds which stages, and which micro-batches each replica gets. Pure arithmetic.

Eight ranks with `layout.stages=4`; a group's ranks are contiguous, so that they share a node:

    rank        0  1  2  3 | 4  5  6  7
    replica     0  0  0  0 | 1  1  1  1       each is a model-parallel group
    group rank  0  1  2  3 | 0  1  2  3       ranks with equal ones are a data-parallel group

A rank that drives n devices holds n consecutive workers. Worker w holds stage w, unless the schedule places
several stages on each worker.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from trainer.errors import UserError


@dataclass(frozen=True)
class Layout:
    """How the world's ranks partition and replicate the model.

    Attributes:
        world: The number of ranks.
        workers: The number of workers of a replica, as `layout.stages` requests.
        devices_per_rank: The number of devices, hence workers, that one rank drives.
        placement: The worker that holds each stage; by default worker w holds stage w.

    Raises:
        UserError: The three numbers do not fit together.
    """

    world: int
    workers: int
    devices_per_rank: int = 1
    placement: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.devices_per_rank < 1:
            raise UserError(f"layout.devices_per_rank={self.devices_per_rank} must be at least 1")
        if self.workers < 1:
            raise UserError(f'layout.stages={self.workers} must be "auto" or at least 1')
        if not self.placement:
            object.__setattr__(self, "placement", tuple(range(self.workers)))
        if self.workers % self.devices_per_rank:
            raise UserError(
                f"layout.stages={self.workers} is not divisible by "
                f"layout.devices_per_rank={self.devices_per_rank}: the workers of a rank belong to one "
                f"replica; {_choices(self.world, self.devices_per_rank)}"
            )
        if self.world % self.ranks_per_group:
            raise UserError(
                f"world size {self.world} is not divisible by the group of {self.ranks_per_group} ranks "
                f"(layout.stages={self.workers}{_per_rank(self.devices_per_rank)}): start a multiple of "
                f"{self.ranks_per_group} ranks, or {_choices(self.world, self.devices_per_rank)}"
            )

    @classmethod
    def of(
        cls,
        world: int,
        stages: int | Literal["auto"] | str,
        devices_per_rank: int,
        layers: int,
        place: Callable[[int], tuple[int, ...]] = lambda workers: tuple(range(workers)),
    ) -> "Layout":
        """Return the layout that the user requests.

        Args:
            world: The number of ranks.
            stages: A number, or "auto": the number of a rank's devices if it has several, else 2 if the
                world's size is even and the model has 2 layers, else 1.
            devices_per_rank: The number of devices that one rank drives.
            layers: The number of the model's layers.
            place: Returns the worker that holds each stage, given the number of workers.

        Raises:
            UserError: The numbers do not fit together, or there are more stages than layers.
        """
        if stages == "auto":
            two = world % 2 == 0 and layers >= len(place(2))
            number = devices_per_rank if devices_per_rank > 1 else 2 if two else 1
        elif isinstance(stages, int) and not isinstance(stages, bool):
            number = stages
        else:
            raise UserError(f'layout.stages={stages!r} must be "auto" or a whole number')
        if number < 1:
            return cls(world, number, devices_per_rank)  # raises
        layout = cls(world, number, devices_per_rank, place(number))
        if layout.stages > layers:
            each = layout.stages // number
            held = f" with {each} stages per worker," if each > 1 else ""
            raise UserError(
                f"layout.stages={number}{held} but the model has {layers} layers: every stage needs one; "
                f"{_choices(world, devices_per_rank, layers // each)}"
            )
        return layout

    @property
    def stages(self) -> int:
        """Return the number of stages of a replica."""
        return len(self.placement)

    @property
    def ranks_per_group(self) -> int:
        """Return the number of ranks that together hold one replica of the model."""
        return self.workers // self.devices_per_rank

    @property
    def replicas(self) -> int:
        """Return the number of replicas."""
        return self.world // self.ranks_per_group

    def replica(self, rank: int) -> int:
        """Return the replica of a rank of the world."""
        return rank // self.ranks_per_group

    def group_rank(self, rank: int) -> int:
        """Return a rank's position in its model-parallel group."""
        return rank % self.ranks_per_group

    def ranks_of_group(self, replica: int) -> range:
        """Return the ranks of the world that hold a replica, by group rank."""
        return range(replica * self.ranks_per_group, (replica + 1) * self.ranks_per_group)

    def workers_of(self, group_rank: int) -> range:
        """Return the workers that one rank of the group drives, by device."""
        return range(group_rank * self.devices_per_rank, (group_rank + 1) * self.devices_per_rank)

    def stages_of(self, group_rank: int) -> list[int]:
        """Return the stages that one rank of the group holds, in order."""
        workers = self.workers_of(group_rank)
        return [stage for stage, worker in enumerate(self.placement) if worker in workers]

    def group_rank_of(self, stage: int) -> int:
        """Return the group rank that holds a stage."""
        return self.placement[stage] // self.devices_per_rank

    def device_of(self, stage: int) -> int:
        """Return which of its rank's devices holds a stage."""
        return self.placement[stage] % self.devices_per_rank

    def rank_of(self, stage: int, replica: int) -> int:
        """Return the rank of the world that holds a stage of a replica."""
        return replica * self.ranks_per_group + self.group_rank_of(stage)


def micro_batch_sizes(global_size: int, micro_size: int) -> tuple[int, ...]:
    """Return the sizes in samples of a global batch's micro-batches; the last may be smaller.

    Raises:
        UserError: A size is not positive.
    """
    for key, size in (("batch.global_size", global_size), ("batch.micro_size", micro_size)):
        if size < 1:
            raise UserError(f"{key}={size} must be at least 1")
    whole, rest = divmod(global_size, micro_size)
    return (micro_size,) * whole + ((rest,) if rest else ())


def assign_micro_batches(micro_batches: int, replicas: int, replica: int) -> range:
    """Return the micro-batches of the global batch that a replica trains on: at least one; see `share`.

    Raises:
        UserError: There are fewer micro-batches than replicas.
    """
    if micro_batches < replicas:
        raise UserError(
            f"batch.global_size and batch.micro_size make {micro_batches} micro-batches, "
            f"but there are {replicas} replicas and each needs one: raise batch.global_size, "
            f"lower batch.micro_size, or use more stages (layout.stages)"
        )
    return share(micro_batches, replicas, replica)


def share(micro_batches: int, replicas: int, replica: int) -> range:
    """Return a replica's share of the micro-batches, which may be empty.

    Every replica gets a contiguous range. Lengths differ by at most one; longer ranges come first.
    """
    each, longer = divmod(micro_batches, replicas)
    first = replica * each + min(replica, longer)
    return range(first, first + each + (replica < longer))


def _per_rank(devices_per_rank: int) -> str:
    return f", layout.devices_per_rank={devices_per_rank}" if devices_per_rank > 1 else ""


def _choices(world: int, devices_per_rank: int, layers: int | None = None) -> str:
    """Return text that lists the numbers of stages that the world allows."""
    workers = world * devices_per_rank
    numbers = [
        stages
        for stages in range(devices_per_rank, workers + 1, devices_per_rank)
        if workers % stages == 0 and (layers is None or stages <= layers)
    ]
    if not numbers:
        return f"no number of stages fits layout.devices_per_rank={devices_per_rank}, so lower it"
    return f"layout.stages can be {', '.join(map(str, numbers))}"
