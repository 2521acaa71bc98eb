"""One optimizer step, the same on every rank: forward and backward by schedule, average, clip, update."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from trainer.distributed.devices import peak_memory
from trainer.distributed.heartbeat import Phase, Word, heartbeat
from trainer.distributed.requests import Requests
from trainer.errors import TrainingError, add_note
from trainer.optim.gradients import all_gradients, clear_gradients, clip, global_norm, gradient_norms
from trainer.optim.learning_rate import learning_rate, set_learning_rates
from trainer.pipeline.loss import added, count_of
from trainer.pipeline.micro_batches import MicroBatches, Reading, split_batch
from trainer.pipeline.not_finite import Search
from trainer.pipeline.stage import refuse_changed_weights
from trainer.replication.check import check_equal, check_initial
from trainer.run import Run


@dataclass(frozen=True)
class StepSummary:
    """Values that the ranks of a pipeline exchange at the end of a step.

    Attributes:
        loss: Mean over the global batch, before the update.
        grad_norm: Of the whole gradient, before clipping.
        count: What the loss is a mean of: samples, or tokens that are not masked.
        waited: Seconds that each rank of the group waited for others, up to the exchange itself; what the
            update waits for the weights of other replicas is part of the next step's.
        cpu_seconds: Processor time that each rank of the group used, all threads together, since the previous
            update (validation and checkpoints in between included).
        peak_memory: The most bytes that each rank of the group has held so far.
    """

    loss: float
    grad_norm: float
    count: float
    waited: tuple[float, ...]
    cpu_seconds: tuple[float, ...]
    peak_memory: tuple[int, ...]


@dataclass(frozen=True)
class StepResult:
    """What one step did.

    Attributes:
        step: Its number, from 1.
        summary: What the ranks of the pipeline exchanged.
        lr: The learning rate of the update, of parameters that no group gives another.
        seconds: How long the step took, on this rank.
        loss_scale: What losses were multiplied by for the backward; None but with precision=fp16.
        skipped: Whether the weights stayed as they were, because the loss or the gradient is not finite.
    """

    step: int
    summary: StepSummary
    lr: float
    seconds: float
    loss_scale: float | None = None
    skipped: bool = False

    @property
    def bubble(self) -> float:
        """Return the share of the ranks' time in which they waited for one another."""
        waited = self.summary.waited
        return sum(waited) / (len(waited) * self.seconds)


class TrainStep:
    """Does a run's steps.

    Args:
        run: The run.
        steps: The number of the last step, at which the learning rate's schedule ends.
        observe: Called in every step when the gradients are averaged, before they are clipped.

    Attributes:
        requests: What ranks ask for at the end of a step, agreed in the step's exchanges.
    """

    def __init__(self, run: Run, steps: int, observe: Callable[[], None] = lambda: None) -> None:
        self.requests = Requests(run.groups.data_parallel.size)
        self._run = run
        self._observe = observe
        self._steps = steps
        self._actions = run.schedule.workers[run.groups.model_parallel.rank]
        places = np.array([layer.index for layer in run.layers for _ in layer.trained()], dtype=np.int64)
        group = run.groups.model_parallel
        # How many gradient norms each rank of the group contributes, and their order in the model.
        self._owned = group.all_gather(np.array([len(places)]), [1] * group.size).tolist()
        self._model_order = np.argsort(group.all_gather(places, self._owned), kind="stable")
        check_initial(run.layers, run.groups)
        self._cpu_clock = time.process_time()
        self._waited_in_update = 0.0  # seconds; reported with the next step
        self._left = time.perf_counter()  # when the ranks last parted, all at the same time

    def run(self, step: int, samples_seen: int) -> StepResult:
        """Do one step.

        Args:
            step: Its number, from 1.
            samples_seen: How many samples the run has trained on before it.
        """
        start, waited = time.perf_counter(), self._run.meter.seconds - self._waited_in_update
        run, optimizer = self._run, self._run.config.optimizer
        run.randomness.step, run.randomness.first_micro_batch = step, run.micro_batches.start
        heartbeat.words[Word.STEP] = step
        heartbeat.enter(Phase.READ)
        batch = self._read(step, samples_seen)
        heartbeat.enter(Phase.TRAIN)
        loss_scale = None if run.loss_scale is None else run.loss_scale.value
        count, divisor = self._count(batch)

        scale = (loss_scale or 1.0) / divisor if divisor else 0.0
        losses = self._forward_backward(batch, scale)
        heartbeat.enter(Phase.UPDATE)
        with run.engine.timings.updating(run.meter):
            summary = self._exchange(self._total_loss(losses), count, run.meter.seconds - waited)
            before = run.meter.seconds
            skipped = self._skips(step, summary, batch, scale)
            if skipped:
                self._forget_step()
            else:
                self._update(step, summary.grad_norm)
            self._waited_in_update = run.meter.seconds - before
        self._check_replicas(step)
        heartbeat.enter(Phase.IDLE)
        run.engine.timings.begin, run.engine.timings.end = start, time.perf_counter()
        return StepResult(
            step=step,
            summary=summary,
            lr=learning_rate(optimizer.lr, optimizer.lr_schedule, step, self._steps),
            seconds=run.engine.timings.seconds,
            loss_scale=loss_scale,
            skipped=skipped,
        )

    def _read(self, step: int, samples_seen: int) -> MicroBatches:
        """Read this rank's part of the global batch: inputs on the first stage, targets on the last.

        All of it before the first forward, because the loss is divided by a count over all targets.
        """
        run = self._run
        inputs, targets = run.holds_first_stage, run.holds_last_stage
        if not inputs and not targets:
            return MicroBatches(run.data.training, [], run.randomness, read_inputs=False, read_targets=False)
        batch = MicroBatches(
            run.data.training,
            self._samples(samples_seen),
            run.randomness,
            read_inputs=inputs,
            read_targets=targets,
            reader=run.reader,
        )
        if step < self._steps:
            following = self._samples(samples_seen + run.config.batch.global_size)
            first = run.micro_batches.start
            run.reader.expect(run.data.training, Reading(following, step + 1, first, inputs, targets))
        return batch

    def _samples(self, samples_seen: int) -> list[NDArray[np.int64]]:
        """Return the samples of this rank's micro-batches."""
        run = self._run
        samples = run.order.samples(samples_seen, run.config.batch.global_size)
        return split_batch(samples, run.plan.sizes, run.micro_batches)

    def _count(self, batch: MicroBatches) -> tuple[float, float]:
        """Return the number of the loss's terms in the global batch, and what losses are divided by.

        On ranks without the last stage, which compute no loss, these are 0 and 1.
        """
        run = self._run
        if not run.holds_last_stage:
            return 0, 1
        mine = count_of(run.model.loss, batch.all_targets())
        replicas = run.groups.data_parallel
        numbers = np.array([mine, *self.requests.for_replicas()], dtype=np.float64)
        rows = replicas.all_gather(numbers, [len(numbers)] * replicas.size).reshape(replicas.size, -1)
        self.requests.from_replicas(rows[:, 1:].astype(np.int64))
        total = added(rows[:, 0].tolist())
        return total, run.replication.divisor(mine, total)

    def _total_loss(self, losses: Mapping[int, Tensor]) -> float:
        """Return the global batch's sum, added in the order of micro-batches; 0 without the last stage."""
        if not losses:
            return 0.0
        mine = np.array([losses[i].item() for i in range(len(losses))], dtype=np.float64)
        return added(self._run.groups.data_parallel.all_gather(mine, self._run.plan.shares).tolist())

    def _exchange(self, loss: float, count: float, waited: float) -> StepSummary:
        """Exchange the gradients' norms, and each rank's numbers, within the pipeline."""
        run, group = self._run, self._run.groups.model_parallel
        norms = gradient_norms(run.layers)
        if run.loss_scale is not None:
            norms /= run.loss_scale.value
        used, self._cpu_clock = time.process_time() - self._cpu_clock, time.process_time()
        arrived = time.perf_counter() - self._left
        numbers = [loss, count, waited, arrived, used, peak_memory(run.devices)]
        tail = np.array([*numbers, *self.requests.for_pipeline()], dtype=np.float64)
        lengths = [owned + len(tail) for owned in self._owned]
        everyone = group.all_gather(np.concatenate([norms, tail]), lengths)
        self._left = time.perf_counter()
        parts: list[NDArray[np.float64]] = np.split(everyone, np.cumsum(lengths)[:-1])
        tails = np.stack([part[-len(tail) :] for part in parts])
        self.requests.from_pipeline(tails[:, len(numbers) :].astype(np.int64))
        global_count = float(tails[:, 1].sum())  # of one rank; 0 from the others
        all_norms = np.concatenate([part[: -len(tail)] for part in parts])[self._model_order]
        return StepSummary(
            loss=float(tails[:, 0].sum()) / global_count if global_count else 0.0,
            grad_norm=global_norm(all_norms),
            count=global_count,
            # The ranks wait for the last of them here too.
            waited=tuple((tails[:, 2] + tails[:, 3].max() - tails[:, 3]).tolist()),
            cpu_seconds=tuple(tails[:, 4].tolist()),
            peak_memory=tuple(int(memory) for memory in tails[:, 5]),
        )

    def _forward_backward(self, batch: MicroBatches, scale: float) -> dict[int, Tensor]:
        """Run the forwards and backwards, and average; return the losses by micro-batch."""
        run = self._run
        clear_gradients(run.layers)
        for forward in run.forwards:
            forward.buffers.begin_step()
        losses = run.engine.train(self._actions, batch, scale)
        if run.groups.data_parallel.size > 1:
            refuse_changed_weights(run.forwards)
        return losses

    def _skips(self, step: int, summary: StepSummary, batch: MicroBatches, scale: float) -> bool:
        """Unscale the gradients; return whether to leave the weights as they are. Every rank decides alike.

        Raises:
            TrainingError: The loss or the gradient is not finite, and `train.non_finite` is "stop".
        """
        run = self._run
        if run.loss_scale is not None:
            run.loss_scale.unscale(all_gradients(run.layers))
        self._observe()
        if run.loss_scale is not None:
            return not run.loss_scale.accepts(summary.grad_norm)
        if math.isfinite(summary.loss) and math.isfinite(summary.grad_norm):
            return False
        if run.config.train.non_finite == "stop":
            raise not_finite(run, step, summary.loss, batch, lambda: self._forward_backward(batch, scale))
        return True

    def _forget_step(self) -> None:
        """Discard what the step's forwards have left in buffers."""
        self._run.statistics.forget()
        for forward in self._run.forwards:
            forward.buffers.forget_step()

    def _check_replicas(self, step: int) -> None:
        every = self._run.config.train.check_replicas
        if every and step % every == 0 and self._run.replication.keeps_equal:
            check_equal(self._run.layers, self._run.groups.data_parallel, step)

    def _update(self, step: int, norm: float) -> None:
        """Clip the averaged gradients, let the optimizer step, and what follows its step."""
        run = self._run
        run.statistics.update(run.groups.data_parallel)
        clip(all_gradients(run.layers), norm, run.config.optimizer.clip)
        if run.optimizer is not None:
            set_learning_rates(run.optimizer, run.config.optimizer.lr_schedule, step, self._steps)
            try:
                run.optimizer.step()
            except Exception as error:
                add_note(error, f"in the optimizer's step {step}")
                raise
        run.replication.after_update()


def not_finite(
    run: Run, step: int, loss: float, batch: MicroBatches, train: Callable[[], Mapping[int, Tensor]]
) -> TrainingError:
    """Return the error of a step that is not finite, after looking for where. Every rank calls this.

    Args:
        run: The run.
        step: The step.
        loss: Its loss.
        batch: This rank's part of its global batch.
        train: Runs its forwards and backwards again.
    """
    read = range(len(run.micro_batches)) if run.holds_first_stage else ()
    search = Search(run.layers, run.micro_batches.start)
    mine = search.look(train, {i: batch.inputs(i) for i in read})
    everyone = run.world.all_gather_objects(mine)
    found = min(
        ((finding, rank) for rank, finding in enumerate(everyone) if finding is not None), default=None
    )
    where = "" if found is None else f", first in {found[0].words} (rank {found[1]})"
    what = "its loss" if not math.isfinite(loss) else "its gradient"
    return TrainingError(
        f"step {step} was not done, because {what} is not finite{where}: look at its samples, lower "
        "optimizer.lr, set optimizer.clip, or leave such steps out with train.non_finite=skip. The weights "
        "and the checkpoints are those of before"
    )
