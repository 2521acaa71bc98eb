"""`python -m trainer.verify`, with a mistake put into the trainer: verify must find it.

The first argument names the mistake; the others are the trainer's.
"""

import os
import sys
from dataclasses import replace

from trainer import run, step
from trainer.optimization import global_norm, gradient_norms
from trainer.pipeline import build
from trainer.pipeline.randomness import Randomness
from trainer.pipeline.stage import Stage
from trainer.pipeline.statistics import RunningStatistics
from trainer.pipeline.ties import TiedParameters
from trainer.replication.averaging import HorovodAveraging
from trainer.replication.sharding import Shards
from trainer.step import Stepper
from trainer.verify.__main__ import main


def averaging_forgets_a_layer():
    start = HorovodAveraging.start
    HorovodAveraging.start = lambda self, layer: layer.name == "block.1" or start(self, layer)


def averaging_is_a_mean():
    init = HorovodAveraging.__init__

    def mean(self, op, compression):
        init(self, op, compression)
        self._op = self._horovod.Average

    HorovodAveraging.__init__ = mean


def averaging_is_of_replicas_means():
    count = Stepper._count

    def of_the_replica(self, source):
        mine = sum(self._run.model.loss.count(target) for target in source.all_targets())
        total, _ = count(self, source)
        return total, 1 / (self._run.layout.replicas * mine) if mine else 1.0

    Stepper._count = of_the_replica


def gradients_are_complete_too_early():
    """A layer's last micro-batch is left out of what is averaged."""
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

    Stage.backward = early


def seeds_count_micro_batches_by_replica():
    Randomness.first_micro_batch = property(lambda self: 0, lambda self, value: None)


def seeds_forget_the_step():
    Randomness.step = property(lambda self: 1, lambda self, value: None)


def weights_follow_the_rank():
    derive = build.derive
    build.derive = lambda *purpose: derive(*purpose, os.environ["OMPI_COMM_WORLD_RANK"])


def tie_loses_a_use():
    TiedParameters.add_to_owners = lambda self, received, *, owner, use: None


def tie_does_not_come_back():
    TiedParameters.give_to_uses = lambda self, received, *, owner, use: None


def tie_begins_apart():
    build_layer = build.build_layer

    def apart(*arguments):
        layer = build_layer(*arguments)
        for tie in layer.ties:
            layer.module.get_parameter(tie.parameter).data.mul_(1.5)
        return layer

    run.build_layer = apart


def norm_forgets_a_parameter():
    def forgetful(layers):
        norms = gradient_norms(layers)
        norms[-1:] = 0.0
        return norms

    step.gradient_norms = forgetful


def norm_is_of_a_stage():
    exchange = Stepper._exchange

    def of_the_stage(self, *numbers):
        own = global_norm(gradient_norms(self._run.layers))
        return replace(exchange(self, *numbers), grad_norm=own)

    Stepper._exchange = of_the_stage


def weights_stay_in_their_shard():
    Shards.exchange = lambda self: 0.0


def statistics_are_of_a_replica():
    update = RunningStatistics.update
    RunningStatistics.update = lambda self, replicas: update(self, _Alone())


def layers_round_at_cuts_alone():
    init = Stage.__init__

    def between_stages_only(self, *arguments, **options):
        init(self, *arguments, **options)
        self._hand_on[:-1] = [lambda tensor: tensor for _ in self._hand_on[:-1]]

    Stage.__init__ = between_stages_only


class _Alone:
    size = 1

    def all_gather(self, values, counts):
        return values


if __name__ == "__main__":
    globals()[sys.argv.pop(1)]()
    main()
