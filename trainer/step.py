"""One optimizer step, the same on every rank: forward and backward by schedule, average, clip, update."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from trainer.devices import peak_memory
from trainer.optimization import (
    all_gradients,
    clear_gradients,
    clip,
    global_norm,
    gradient_norms,
    learning_rate,
    set_learning_rates,
)
from trainer.pipeline.micro_batches import MicroBatches, cut
from trainer.run import Run


@dataclass(frozen=True)
class Told:
    """What the ranks of a group tell each other at the end of a step.

    Attributes:
        loss: Mean over the global batch, before the update.
        grad_norm: Of the whole gradient, before clipping.
        count: What the loss is a mean of: samples, or tokens that are not masked.
        waited: Seconds that each rank of the group waited for others, to the point where it tells them; what
            the update waited for others' weights is told by the step behind it.
        cpu_seconds: Processor time that each rank of the group used, all threads together, since the update
            before (validation and checkpoints in between included).
        peak_memory: The most bytes that each rank of the group has held so far.
    """

    loss: float
    grad_norm: float
    count: int
    waited: tuple[float, ...]
    cpu_seconds: tuple[float, ...]
    peak_memory: tuple[int, ...]


@dataclass(frozen=True)
class StepResult(Told):
    """What a step was.

    Attributes:
        lr: The learning rate of the update, of parameters that no group gives another.
        seconds: How long the step took, on this rank.
        loss_scale: What losses were multiplied by for the backward; None but with precision=fp16.
    """

    lr: float
    seconds: float
    loss_scale: float | None = None

    @property
    def bubble(self) -> float:
        """Return the share of the ranks' time in which they waited for one another."""
        return sum(self.waited) / (len(self.waited) * self.seconds)

    @property
    def skipped(self) -> bool:
        """Return whether the step has changed nothing, for its gradient overflowed with the loss scale."""
        return self.loss_scale is not None and not math.isfinite(self.grad_norm)


class Stepper:
    """Does a run's steps.

    Args:
        run: The run.
        steps: How many there are in all; the learning rate may end with them.
        observe: Called in every step when the gradients are whole, before they are clipped.
    """

    def __init__(self, run: Run, steps: int, observe: Callable[[], None] = lambda: None) -> None:
        self._run = run
        self._observe = observe
        self._steps = steps
        self._shares = run.shares
        self._actions = run.schedule(len(run.micro_batches)).workers[run.groups.model_parallel.rank]
        places = np.array([layer.index for layer in run.layers for _ in layer.trained()], dtype=np.int64)
        group = run.groups.model_parallel
        # How many gradient norms each rank of the group has to tell, and their order in the model.
        self._owned = group.all_gather(np.array([len(places)]), [1] * group.size).tolist()
        self._model_order = np.argsort(group.all_gather(places, self._owned), kind="stable")
        self._cpu_clock = time.process_time()
        self._waited_in_update = 0.0  # for others' weights; told by the next step
        self._left = time.perf_counter()  # when the ranks last parted, all at the same time

    def run(self, step: int, position: int) -> StepResult:
        """Do one step.

        Args:
            step: Its number, from 1.
            position: How many samples the run has trained on before it.
        """
        start = time.perf_counter()
        run, config = self._run, self._run.config
        samples = run.order.samples(position, config.batch.global_size)
        source = MicroBatches(
            run.data.training,
            cut(samples, run.sizes, run.micro_batches),
            read_inputs=run.holds_first_stage,
            read_targets=run.holds_last_stage,
        )
        run.randomness.step, run.randomness.first_micro_batch = step, run.micro_batches.start
        lr = learning_rate(config.optimizer.lr, config.optimizer.lr_schedule, step, self._steps)
        count, scale = self._count(source)
        loss_scale = None if run.loss_scale is None else run.loss_scale.value

        told: list[Told] = []

        def update(losses: Mapping[int, Tensor]) -> float:
            before = run.groups.model_parallel.waited
            waited = run.engine.observed.waited + self._waited_in_update
            told.append(self._exchange(self._total_loss(losses), count, waited))
            if run.loss_scale is not None:  # not before: another rank may still have to read tied gradients
                run.loss_scale.unscale(all_gradients(run.layers))
            self._observe()
            self._update(step, told[0].grad_norm)
            return run.groups.model_parallel.waited - before + self._waited_in_update

        clear_gradients(run.layers)
        run.engine.train(self._actions, source, scale * (loss_scale or 1.0), update)
        run.engine.observed.begin, run.engine.observed.end = start, time.perf_counter()
        return StepResult(lr=lr, seconds=run.engine.observed.seconds, loss_scale=loss_scale, **vars(told[0]))

    def _count(self, source: MicroBatches) -> tuple[int, float]:
        """Return the global count and what losses are scaled by; on ranks without the last stage 0 and 1."""
        run = self._run
        if not run.holds_last_stage:
            return 0, 1.0
        mine = sum(int(run.model.loss.count(target)) for target in source.all_targets())
        replicas = run.groups.data_parallel
        total = int(replicas.all_gather(np.array([mine]), [1] * replicas.size).sum())
        # Adasum combines the replicas' own gradients, each of its own mean.
        divisor = mine if run.config.averaging.op == "adasum" else total
        return total, 1.0 / divisor if divisor else 0.0

    def _total_loss(self, losses: Mapping[int, Tensor]) -> float:
        """Return the global batch's sum, added in the order of micro-batches; 0 without the last stage."""
        if not losses:
            return 0.0
        mine = np.array([losses[i].item() for i in range(len(losses))], dtype=np.float64)
        return float(sum(self._run.groups.data_parallel.all_gather(mine, self._shares).tolist()))

    def _exchange(self, loss: float, count: int, waited: float) -> Told:
        """Tell the group this rank's norms and numbers, and learn everyone's."""
        norms = gradient_norms(self._run.layers)
        if self._run.loss_scale is not None:
            norms /= self._run.loss_scale.value
        used, self._cpu_clock = time.process_time() - self._cpu_clock, time.process_time()
        arrived = time.perf_counter() - self._left
        tail = np.array(
            [loss, count, waited, arrived, used, peak_memory(self._run.devices)], dtype=np.float64
        )
        lengths = [owned + len(tail) for owned in self._owned]
        everyone = self._run.groups.model_parallel.all_gather(np.concatenate([norms, tail]), lengths)
        self._left = time.perf_counter()
        parts: list[NDArray[np.float64]] = np.split(everyone, np.cumsum(lengths)[:-1])
        tails = np.stack([part[-len(tail) :] for part in parts])
        global_count = int(tails[:, 1].sum())
        all_norms = np.concatenate([part[: -len(tail)] for part in parts])[self._model_order]
        return Told(
            loss=float(tails[:, 0].sum()) / global_count if global_count else 0.0,
            grad_norm=global_norm(all_norms),
            count=global_count,
            # They wait for the last of them here too.
            waited=tuple((tails[:, 2] + tails[:, 3].max() - tails[:, 3]).tolist()),
            cpu_seconds=tuple(tails[:, 4].tolist()),
            peak_memory=tuple(int(memory) for memory in tails[:, 5]),
        )

    def _update(self, step: int, norm: float) -> None:
        run, self._waited_in_update = self._run, 0.0
        if run.loss_scale is not None and not run.loss_scale.accepts(norm):
            run.statistics.forget()
            return
        run.statistics.update(run.groups.data_parallel)
        clip(all_gradients(run.layers), norm, run.config.optimizer.clip)
        if run.optimizer is not None:
            set_learning_rates(run.optimizer, run.config.optimizer.lr_schedule, step, self._steps)
            run.optimizer.step()
        self._waited_in_update = run.shards.exchange()
