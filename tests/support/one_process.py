"""A complete pipeline in one process: several stages on the CPU and an engine, without communication."""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from trainer.activation import Activation, flatten, spec_of
from trainer.distributed.waiting import WaitMeter
from trainer.models.model import LOSS, Model
from trainer.pipeline.build import build_layer
from trainer.pipeline.engine import Engine
from trainer.pipeline.layer import BuiltLayer
from trainer.pipeline.precision import Precision
from trainer.pipeline.randomness import Randomness
from trainer.pipeline.recomputation import Recompute
from trainer.pipeline.source import Source
from trainer.pipeline.stage import Stage
from trainer.pipeline.ties import TiedParameters, tied_stages
from trainer.pipeline.transport import LocalTransport
from trainer.replication.replication import Replication
from trainer.schedule.actions import Action
from trainer.schedule.assemble import evaluation_schedule, training_schedule
from trainer.schedule.merge import merge_for_rank
from trainer.schedule.resolve import resolve

CPU = torch.device("cpu")


class Given(Source):
    """Micro-batches given by a test."""

    def __init__(self, inputs: Sequence[Activation], targets: Sequence[Activation]) -> None:
        self._inputs = inputs
        self._targets = targets

    def signatures(self) -> Sequence[Hashable]:
        return [spec_of(*flatten(inputs)) for inputs in self._inputs]

    def inputs(self, micro_batch: int) -> Activation:
        return self._inputs[micro_batch]

    def targets(self, micro_batch: int) -> Activation:
        return self._targets[micro_batch]


class Pipeline:
    """A model cut into stages, all of them in this process.

    Args:
        model: The model.
        sizes: The number of layers of each stage.
        schedule: The name of the training schedule.
        gradients: The averaging; by default that of a single replica.
        recompute: The recomputation mode of every layer.
        precision: The type that layers compute in.
    """

    def __init__(
        self,
        model: Model,
        sizes: Sequence[int],
        schedule: str = "1f1b",
        gradients: Replication | None = None,
        *,
        recompute: Recompute = Recompute.NONE,
        precision: Precision = Precision(),  # noqa: B008  (frozen)
    ) -> None:
        assert sum(sizes) == len(model.layers)
        stage_of = [stage for stage, size in enumerate(sizes) for _ in range(size)]
        self._ties = tied_stages(model.layers, stage_of)
        self._recipe = resolve(schedule)
        self._count = len(sizes)
        # The schedule's usual number of stages a worker if that divides the total, else one worker for all.
        each = self._recipe.stages_per_worker
        self._each = each if len(sizes) % each == 0 else len(sizes)
        self.model = model
        self.randomness = Randomness(seed=3)
        self.layers = [build_layer(model.layers, i, 3, CPU) for i in range(len(stage_of))]
        self.loss_layer: BuiltLayer | None = None
        if len(model.parts) > len(model.layers):
            self.loss_layer = BuiltLayer(len(stage_of), LOSS, model.parts[-1].build())
        self.stages = {
            stage: Stage(
                stage,
                [layer for layer in self.layers if stage_of[layer.index] == stage],
                CPU,
                loss=model.loss if stage == len(sizes) - 1 else None,
                randomness=self.randomness,
                on_layer_done=lambda: None,
                recompute=[recompute] * size,
                precision=precision,
                loss_layer=self.loss_layer if stage == len(sizes) - 1 else None,
            )
            for stage, size in enumerate(sizes)
        }
        local = LocalTransport(dict.fromkeys(self.stages, CPU))
        self.engine = Engine(
            self.stages,
            last_stage=len(sizes) - 1,
            local=local,
            remote=local,
            gradients=gradients or Replication(),
            ties=TiedParameters(self.stages, model.layers, stage_of),
            meter=WaitMeter(),
        )

    def actions(self, micro_batches: int) -> tuple[Action, ...]:
        """Return the actions of a step."""
        workers = self._count // self._each
        schedule = training_schedule(self._recipe, workers, micro_batches, self._ties, self._each)
        return merge_for_rank(schedule, range(workers))

    def train(self, source: Source, micro_batches: int, scale: float = 1.0) -> list[float]:
        """Run a step's forwards and backwards; return the summed loss of each micro-batch."""
        losses = self.engine.train(self.actions(micro_batches), source, scale)
        return [losses[i].item() for i in range(micro_batches)]

    def evaluate(self, source: Source, micro_batches: int) -> list[float]:
        """Run an evaluation's forwards; return the summed loss of each micro-batch."""
        schedule = evaluation_schedule(range(self._count), micro_batches)
        losses = self.engine.infer(merge_for_rank(schedule, range(self._count)), source)
        return [losses[i].item() for i in range(micro_batches)]

    def gradients(self) -> dict[str, Tensor | None]:
        """Return every parameter's gradient, by layer and name."""
        return {
            f"{layer.name}/{name}": parameter.grad
            for layer in self.layers
            for name, parameter in layer.module.named_parameters()
        }


def share(layers: Sequence[BuiltLayer]) -> None:
    """Tie parameters as plain PyTorch does: one parameter in several modules."""
    modules = {layer.name: layer.module for layer in layers}
    for layer in layers:
        for tie in layer.ties:
            path, _, name = tie.parameter.rpartition(".")
            owned = modules[tie.owner].get_parameter(tie.owner_parameter)
            setattr(layer.module.get_submodule(path), name, owned)
