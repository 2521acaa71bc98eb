"""Mistakes that can be put into the trainer temporarily: `trainer.verify` must find each of them.

A mutation returns a context manager that patches the trainer on entry and reverts the patch on exit.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from trainer import run, step
from trainer.distributed import environment
from trainer.optim.gradients import global_norm, gradient_norms
from trainer.pipeline import build
from trainer.pipeline.randomness import Randomness
from trainer.pipeline.stage import Stage
from trainer.pipeline.statistics import RunningStatistics
from trainer.pipeline.ties import TiedParameters
from trainer.replication.averaging import HorovodAveraging
from trainer.replication.sharding import Shards
from trainer.step import TrainStep

Patch = AbstractContextManager[Any]
MUTATIONS: dict[str, Callable[[], Patch]] = {}


def mutation(patched: Callable[[], Patch]) -> Callable[[], Patch]:
    """Register a mutation under its own name."""
    MUTATIONS[patched.__name__] = patched
    return patched


@contextmanager
def unchecked(patched: Patch) -> Iterator[None]:
    """Patch something that the run itself would refuse, before the verification sees it."""
    with patched, patch.object(step, "check_initial", lambda layers, groups: None):
        yield


@mutation
def averaging_forgets_a_layer() -> Patch:
    start = HorovodAveraging.start

    def forgetful(self, layer):
        return layer.name == "block.1" or start(self, layer)

    return patch.object(HorovodAveraging, "start", forgetful)


@mutation
def averaging_is_a_mean() -> Patch:
    init = HorovodAveraging.__init__

    def mean(self, op, compression, meter):
        init(self, op, compression, meter)
        self._op = self._horovod.Average

    return patch.object(HorovodAveraging, "__init__", mean)


@mutation
def averaging_is_of_replicas_means() -> Patch:
    count = TrainStep._count

    def of_the_replica(self, source):
        mine = sum(self._run.model.loss.count(target) for target in source.all_targets())
        total, _ = count(self, source)
        return total, self._run.plan.layout.replicas * mine if mine else 1

    return patch.object(TrainStep, "_count", of_the_replica)


@mutation
def gradients_are_complete_too_early() -> Patch:
    """Leave a layer's last micro-batch out of the average."""
    backward = Stage.backward

    def early(self, micro_batch, gradients, complete=None):
        if complete is not None:
            before = {p: p.grad.clone() for layer in self.layers for p in layer.trained()}
            complete_too_early = complete

            def complete(layer):
                for parameter in layer.trained():
                    parameter.grad = before[parameter]
                complete_too_early(layer)

        return backward(self, micro_batch, gradients, complete)

    return patch.object(Stage, "backward", early)


@mutation
def seeds_count_micro_batches_by_replica() -> Patch:
    zero = property(lambda self: 0, lambda self, value: None)
    return patch.object(Randomness, "first_micro_batch", zero, create=True)


@mutation
def seeds_forget_the_step() -> Patch:
    return patch.object(Randomness, "step", property(lambda self: 1, lambda self, value: None), create=True)


@mutation
def weights_follow_the_rank() -> Patch:
    derive = build.derive

    def of_the_rank(*purpose):
        return derive(*purpose, environment.rank())

    return unchecked(patch.object(build, "derive", of_the_rank))


@mutation
def tie_loses_a_use() -> Patch:
    return patch.object(TiedParameters, "add_to_owners", lambda self, received, *, owner, use: None)


@mutation
def tie_does_not_come_back() -> Patch:
    return patch.object(TiedParameters, "give_to_uses", lambda self, received, *, owner, use: None)


@mutation
def tie_begins_apart() -> Patch:
    build_layer = build.build_layer

    def apart(*arguments):
        layer = build_layer(*arguments)
        for tie in layer.ties:
            layer.module.get_parameter(tie.parameter).data.mul_(1.5)
        return layer

    return unchecked(patch.object(run, "build_layer", apart))


@mutation
def norm_forgets_a_parameter() -> Patch:
    def forgetful(layers):
        norms = gradient_norms(layers)
        norms[-1:] = 0.0
        return norms

    return patch.object(step, "gradient_norms", forgetful)


@mutation
def norm_is_of_a_stage() -> Patch:
    exchange = TrainStep._exchange

    def of_the_stage(self, *numbers):
        own = global_norm(gradient_norms(self._run.layers))
        return replace(exchange(self, *numbers), grad_norm=own)

    return patch.object(TrainStep, "_exchange", of_the_stage)


@mutation
def weights_stay_in_their_shard() -> Patch:
    return patch.object(Shards, "exchange", lambda self: None)


@mutation
def statistics_are_of_a_replica() -> Patch:
    update = RunningStatistics.update
    return patch.object(RunningStatistics, "update", lambda self, replicas: update(self, _Alone()))


@mutation
def layers_round_at_cuts_alone() -> Patch:
    init = Stage.__init__

    def between_stages_only(self, *arguments, **options):
        init(self, *arguments, **options)
        for forward in self.forwards[:-1]:
            forward._convert = lambda tensor: tensor

    return patch.object(Stage, "__init__", between_stages_only)


class _Alone:
    size = 1

    def all_gather(self, values, counts):
        return values
