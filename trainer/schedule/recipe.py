"""What a schedule is before it is built: where its stages sit, and the order in which every worker computes.

`resolve` turns `schedule=...` into one `ScheduleRecipe`, once. Everything else takes that object, so nothing
else compares or looks up names. A module of `trainer.schedule.recipes` defines a recipe as `RECIPE`; a
schedule file is a recipe too (see `from_file`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from trainer.errors import UserError
from trainer.schedule.actions import Order, Work

Placement: TypeAlias = tuple[int, ...]  # by stage, the worker that holds it
OrderOfStage: TypeAlias = Callable[[int, int, int], Order]  # stage, stages, micro-batches
OrderOfWorker: TypeAlias = Callable[[int, Placement, int], Order]  # worker, placement, micro-batches
OrderOfGroup: TypeAlias = Callable[[Placement, int, Work | None], Sequence[Order]]  # by worker


def round_robin(workers: int, stages_per_worker: int) -> Placement:
    """Return the placement that puts stage s on worker s % workers."""
    return tuple(range(workers)) * stages_per_worker


def by_stage(order: OrderOfStage) -> OrderOfGroup:
    """Return the order of a group in which each worker holds one stage, from the order of a stage."""

    def of_group(placement: Placement, micro_batches: int, _work: Work | None) -> Sequence[Order]:
        assert len(set(placement)) == len(placement), "one stage a worker"
        stages = sorted(range(len(placement)), key=placement.__getitem__)  # by worker
        return [order(stage, len(placement), micro_batches) for stage in stages]

    return of_group


def by_worker(order: OrderOfWorker) -> OrderOfGroup:
    """Return the order of a group, from the order of a worker."""

    def of_group(placement: Placement, micro_batches: int, _work: Work | None) -> Sequence[Order]:
        return [order(worker, placement, micro_batches) for worker in range(max(placement) + 1)]

    return of_group


@dataclass(frozen=True)
class ScheduleRecipe:
    """Builds the order of computing for any group that the schedule supports.

    An order has forwards and backwards only, whole or in two parts. `assemble` adds messages, averaging,
    ties and the optimizer's step.

    Attributes:
        name: What the user calls it: `schedule=<name>`.
        order: Returns every worker's order: see `by_stage` and `by_worker`.
        year: When it was published. Lists of schedules show older ones first, unpublished ones last.
        place: Returns the placement, from the number of workers and of stages a worker.
        stages_per_worker: How many stages a worker holds unless the user says otherwise; the largest number
            where workers differ.
        adjustable: Whether `layout.virtual_stages` may choose another number.
        idle: Returns the idle share of a step in closed form, from p workers, m micro-batches and v stages a
            worker, where forwards and both parts of backwards take equal time and p divides m; None if none
            is known.
        depends_on_work: Whether the order depends on how long actions take. Other orders never see these
            times.
        roughly: Returns orders of nearly the same length much sooner, where finding the best takes a search;
            for comparing many layouts. None where there is no search.
        workers: The only number of workers that it supports; None if it supports any.
        micro_batches: The only number of micro-batches that it supports; None if it supports any.
        digest: A digest of the file that it comes from, for ranks to compare; None if it comes from the code.
    """

    name: str
    order: OrderOfGroup
    year: int = 9999
    place: Callable[[int, int], Placement] = round_robin
    stages_per_worker: int = 1
    adjustable: bool = False
    idle: Callable[[int, int, int], float] | None = None
    depends_on_work: bool = False
    roughly: OrderOfGroup | None = None
    workers: int | None = None
    micro_batches: int | None = None
    digest: str | None = None

    def rough(self) -> "ScheduleRecipe":
        """Return the recipe with orders that are found sooner, and may take a little longer."""
        return self if self.roughly is None else replace(self, order=self.roughly)

    def placement(self, workers: int, stages_per_worker: int | None = None) -> Placement:
        """Return the worker that holds each stage.

        Args:
            workers: The number of workers.
            stages_per_worker: The number of stages a worker; None: the schedule's own choice.

        Raises:
            UserError: The schedule does not support these numbers.
        """
        usual = self.stages_per_worker
        if self.workers is not None and (workers != self.workers or stages_per_worker is not None):
            raise UserError(
                f"schedule={self.name} is for {self.workers} workers and says itself which stages they hold: "
                f"use layout.stages={self.workers}, and leave layout.virtual_stages out"
            )
        if stages_per_worker not in (None, usual) and not self.adjustable:
            raise UserError(
                f"layout.virtual_stages={stages_per_worker}, but schedule={self.name} has {usual} "
                f"stage{'s' * (usual > 1)} a worker: use schedule=interleaved, or leave "
                "layout.virtual_stages out"
            )
        return self.place(workers, usual if stages_per_worker is None else stages_per_worker)

    def orders(self, placement: Placement, micro_batches: int, work: Work | None = None) -> Sequence[Order]:
        """Return the order in which each worker computes.

        Args:
            placement: The worker that holds each stage, as `placement` returned it.
            micro_batches: The number of micro-batches in the replica's step.
            work: The time of forwards, whole backwards and both parts of split ones, by stage; None: both
                parts take as long as a forward, and a whole backward twice as long.

        Raises:
            UserError: The schedule does not support this number of micro-batches.
        """
        if self.micro_batches not in (None, micro_batches):
            raise UserError(
                f"schedule={self.name} has {self.micro_batches} micro-batches, but a replica's step has "
                f"{micro_batches}: batch.global_size / batch.micro_size / replicas"
            )
        return self.order(placement, micro_batches, work if self.depends_on_work else None)

    def idle_share(
        self, workers: int, micro_batches: int, stages_per_worker: int | None = None
    ) -> float | None:
        """Return the closed form of a step's idle share, None if none is known: see `idle`."""
        if self.idle is None:
            return None
        return self.idle(workers, micro_batches, stages_per_worker or self.stages_per_worker)
