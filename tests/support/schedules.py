"""Training schedules by name, as most tests need them."""

from collections.abc import Sequence

from trainer.schedule import assemble
from trainer.schedule.actions import Schedule, Tied, Work
from trainer.schedule.resolve import resolve


def training_schedule(
    name: str,
    workers: int,
    micro_batches: int,
    ties: Sequence[Tied] = (),
    stages_per_worker: int | None = None,
    *,
    work: Work | None = None,
) -> Schedule:
    """Return the schedule of a training step, given the schedule's name or file."""
    return assemble.training_schedule(
        resolve(name), workers, micro_batches, ties, stages_per_worker, work=work
    )
