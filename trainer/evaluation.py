"""Validation loss: forward passes over held-out samples, by a schedule of the same actions."""

import numpy as np

from trainer.distributed.layout import micro_batch_sizes, share
from trainer.optim.modes import evaluating
from trainer.pipeline.loss import added, count_of
from trainer.pipeline.micro_batches import MicroBatches, split_batch
from trainer.run import Run
from trainer.schedule.assemble import evaluation_schedule


def evaluate(run: Run, samples: int) -> float | None:
    """Return the mean loss on validation samples, on every rank alike; None if there are no such samples.

    Args:
        run: The run.
        samples: The number of validation samples, from the first on; 0 for all.
    """
    dataset = run.data.validation
    number = min(samples, len(dataset)) if samples else len(dataset)
    if number == 0:
        return None
    sizes = micro_batch_sizes(number, run.config.batch.micro_size)
    mine = share(len(sizes), run.plan.layout.replicas, run.replica)
    run.randomness.step, run.randomness.first_micro_batch = None, mine.start
    source = MicroBatches(
        dataset,
        split_batch(np.arange(number, dtype=np.int64), sizes, mine),
        run.randomness,
        read_inputs=run.holds_first_stage,
        read_targets=run.holds_last_stage,
        reader=run.reader,
    )
    schedule = evaluation_schedule(run.plan.layout.placement, len(mine))
    with evaluating(run.optimizer):
        losses = run.engine.infer(run.actions(schedule), source)
    ours = [losses[i].item() for i in range(len(losses))]
    counts = [count_of(run.model.loss, [target]) for target in source.all_targets()]
    return _mean(run, ours, counts)


def _mean(run: Run, losses: list[float], counts: list[float]) -> float:
    """Return the mean over all ranks, summed in micro-batch order; only last stages contribute."""
    everyone = run.world.all_gather_objects((losses, counts))
    total = added(loss for theirs, _ in everyone for loss in theirs)
    count = added(part for _, theirs in everyone for part in theirs)
    return total / count if count else 0.0
