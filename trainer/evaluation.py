"""Validation: forward passes over held-out samples, by a schedule of the same actions."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from trainer.distributed.layout import micro_batch_sizes, share
from trainer.optim.modes import evaluating
from trainer.pipeline.loss import added, count_of
from trainer.pipeline.measures import Measured
from trainer.pipeline.micro_batches import MicroBatches, split_batch
from trainer.run import Run
from trainer.schedule.assemble import evaluation_schedule


@dataclass(frozen=True)
class Validation:
    """What a validation found, the same on every rank.

    Attributes:
        loss: The mean loss.
        samples: The number of samples.
        count: What the loss is a mean of: samples, or tokens that are not masked.
        metrics: The values of the metrics, by name.
    """

    loss: float
    samples: int
    count: float
    metrics: Mapping[str, float] = field(default_factory=dict)


def evaluate(run: Run, samples: int) -> Validation | None:
    """Return the mean loss and the metrics on validation samples; None if there are no such samples.

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
    counts = [count_of(run.model.loss, [target]) for target in source.all_targets()]
    parts = [(losses[i].item(), counts[i], run.engine.measured[i]) for i in range(len(losses))]
    return _total(run, number, [part for theirs in run.world.all_gather_objects(parts) for part in theirs])


def _total(run: Run, samples: int, parts: list[tuple[float, float, Measured]]) -> Validation:
    """Return what all micro-batches add up to, in their order; only last stages contribute."""
    loss, count = added(part[0] for part in parts), added(part[1] for part in parts)
    metrics = {}
    for name in run.metrics.functions:
        pairs = [measured[name] for _, _, measured in parts if name in measured]
        if len(pairs) == len(parts):  # else it does not fit the model's output
            total, terms = (added(pair[i] for pair in pairs) for i in range(2))
            metrics[name] = run.metrics.value(name, total, terms)
    return Validation(loss / count if count else 0.0, samples, count, metrics)
