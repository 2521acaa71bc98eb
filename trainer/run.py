"""What one rank of a run holds: built once from the plan, shared by training, evaluation and generation."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from trainer.config.schema import Config, flat
from trainer.data.build import load_data
from trainer.data.dataset import Data
from trainer.data.order import order_of
from trainer.distributed import environment
from trainer.distributed.devices import devices_of_rank
from trainer.distributed.heartbeat import Phase, heartbeat
from trainer.distributed.world import Groups, World, horovod, versions
from trainer.models.build import build_model
from trainer.models.freeze import freeze
from trainer.models.metrics import build_metrics
from trainer.optim.build import build_optimizer, check_groups
from trainer.optim.loss_scale import LossScale
from trainer.pipeline.build import build_layer
from trainer.pipeline.data_check import check_data
from trainer.pipeline.engine import Engine
from trainer.pipeline.forward import LayerForward
from trainer.pipeline.layer import BuiltLayer
from trainer.pipeline.micro_batches import read_samples
from trainer.pipeline.precision import COMPUTE_TYPES, Precision
from trainer.pipeline.randomness import Randomness
from trainer.pipeline.readers import OwnReader, Reader, WorkerReader
from trainer.pipeline.stage import Stage
from trainer.pipeline.statistics import RunningStatistics
from trainer.pipeline.ties import TiedParameters
from trainer.pipeline.transport import LocalTransport, Transport
from trainer.pipeline.wires.connect import connect
from trainer.plan.agreed_costs import agreed_costs
from trainer.plan.plan import Plan, may_read
from trainer.replication.build import build_replication
from trainer.replication.replication import Parts, Replication
from trainer.schedule.actions import Action, Schedule
from trainer.schedule.merge import by_rank
from trainer.schedule.resolve import resolve
from trainer.schedule.validate import validate
from trainer.seeds import derive, seed_generators
from trainer.watch.start import know


class Run:
    """One rank's part of a run.

    Args:
        config: The whole configuration.
        world: All ranks.
        data: The samples; None: those that the configuration names.

    Attributes:
        config: The whole configuration.
        world: All ranks.
        meter: Counts the time that this rank waits for others.
        data: The samples.
        order: Which of them a step trains on.
        model: Its layers, not built, and its loss; what `train.freeze` names is frozen.
        metrics: What validations report beside the loss.
        plan: The layout, the layers of each stage, the schedules: the same on every rank.
        threads: How many this rank computes with.
        groups: This rank's model-parallel and data-parallel group.
        replica: The replica that this rank belongs to.
        micro_batches: Those of the global batch that the replica trains on.
        devices: The devices that this rank drives.
        stages: This rank's stages, by number.
        layers: The layers of these stages, in the model's order, and the loss, if it has parameters.
        statistics: The running statistics of batch normalisation, of these layers.
        replication: What keeps these layers equal to those of the other replicas.
        optimizer: Of the parameters that this rank updates; None where there are none.
        loss_scale: What losses are multiplied by with precision=fp16; else None.
        randomness: What a forward's random numbers follow from.
        reader: Reads samples.
        engine: Runs schedules on the stages.
    """

    def __init__(self, config: Config, world: World, data: Data | None = None) -> None:
        self.config = config
        self.world = world
        self.meter = world.meter
        horovod()  # reported before anything else, if it does not work
        world.agree("configuration", flat(config))
        world.agree("versions", versions())
        self.threads = _prepare_torch(config, world)
        seed_generators(derive(config.train.seed, "data"))
        heartbeat.enter(Phase.LOAD)
        self.data = load_data(config.data, world) if data is None else data
        self._workers = config.data.workers if data is None else 0  # they build what is configured
        world.agree("data", {"fingerprint": self.data.fingerprint})
        recipe = resolve(config.schedule)
        # A rank of a middle stage needs no samples, if their shapes are known without them.
        reads = self.data.example is None or may_read(config, recipe, world.size, world.rank)
        check_data(self.data, config, world, reads=reads)
        self.order = order_of(self.data.training, config.train.seed)
        seed_generators(derive(config.train.seed, "model"))
        model = build_model(config.model, self.data.as_example(), config.loss)
        self.model = freeze(model, config.train.freeze)
        self.metrics = build_metrics(config.metrics, self.data)
        check_groups(config.optimizer.groups, self.model)
        world.agree("schedule", {recipe.name: recipe.digest})
        costs = agreed_costs(world, config, self.model, self.data)
        self.plan = Plan(config, self.model, costs, world.size, recipe)
        self.plan.validate()
        on_gpu = config.device != "cpu" and torch.cuda.is_available()
        heartbeat.enter(Phase.BUILD)
        self.groups: Groups = world.split(self.plan.layout, threads=1 if on_gpu else self.threads)
        self._build()

    def _build(self) -> None:
        """Build this rank's layers, and what runs them."""
        config, layout, partition = self.config, self.plan.layout, self.plan.partition
        self.replica = layout.replica(self.world.rank)
        self.micro_batches = self.plan.micro_batches(self.replica)
        self.devices = devices_of_rank(config.device, self.world.local_rank, layout.devices_per_rank)
        self.loss_scale = LossScale() if config.precision == "fp16" else None
        self.randomness = Randomness(config.train.seed)
        mine = layout.stages_of(self.groups.model_parallel.rank)
        self.reader = self._reader(reads=0 in mine or layout.stages - 1 in mine)
        device_of = {stage: self.devices[layout.device_of(stage)] for stage in mine}
        built = {stage: self._build_layers(partition.stages[stage], device_of[stage]) for stage in mine}
        loss_layer = self._loss_layer(device_of.get(layout.stages - 1))
        self.layers: list[BuiltLayer] = [layer for layers in built.values() for layer in layers]
        self.layers += [] if loss_layer is None else [loss_layer]
        parts = Parts(config, self.layers, self.groups.data_parallel, self.meter)
        self.replication: Replication = build_replication(parts)
        local, remote = self._transports(device_of)
        self.stages = {
            stage: Stage(
                stage,
                layers,
                device_of[stage],
                loss=self.model.loss if stage == layout.stages - 1 else None,
                randomness=self.randomness,
                on_layer_done=_both(remote.progress, self.replication.progress),
                recompute=[partition.recompute[layer.index] for layer in layers],
                precision=Precision(COMPUTE_TYPES[config.precision]),
                # Where the costs are a guess, the first forward shows it.
                writes=[
                    cost.writes_inputs and cost.warning is None
                    for cost in (partition.costs[layer.index] for layer in layers)
                ],
                loss_layer=loss_layer if stage == layout.stages - 1 else None,
                metrics=self.metrics,
            )
            for stage, layers in built.items()
        }
        self.statistics = RunningStatistics(self.layers)
        self.optimizer = build_optimizer(config.optimizer, self.layers, self.replication.owns)
        self.engine = Engine(
            self.stages,
            last_stage=layout.stages - 1,
            local=local,
            remote=remote,
            gradients=self.replication,
            ties=TiedParameters(self.stages, self.model.layers, partition.stage_of),
            meter=self.meter,
        )
        planned = self.plan.memory.total(self.groups.model_parallel.rank)
        know(layout, self.world.rank, [layer.name for layer in self.layers], planned)

    def _reader(self, *, reads: bool) -> Reader:
        """Return what reads samples; only ranks with the first or the last stage start workers."""
        config = self.config
        if not reads or not self._workers:
            return OwnReader(config.train.seed)
        return WorkerReader(
            self.data,
            config.data,
            self.world.rank,
            seed=config.train.seed,
            data_seed=derive(config.train.seed, "data"),
            deterministic=config.train.deterministic,
        )

    def _build_layers(self, indices: range, device: torch.device) -> list[BuiltLayer]:
        return [build_layer(self.model.layers, i, self.config.train.seed, device) for i in indices]

    def _loss_layer(self, device: torch.device | None) -> BuiltLayer | None:
        """Return the loss as a layer on its device, if it has parameters, and this rank computes it."""
        number = len(self.model.layers)
        if device is None or len(self.model.parts) == number:
            return None
        loss = self.model.parts[-1]
        return BuiltLayer(number, loss.name, loss.build().to(device))

    def _transports(self, device_of: dict[int, torch.device]) -> tuple[LocalTransport, Transport]:
        """Return what carries activations within this rank, and to the other ranks of the group."""
        local = LocalTransport(device_of)
        if self.groups.model_parallel.size == 1:
            return local, local
        layout = self.plan.layout
        rank_of = [layout.group_rank_of(stage) for stage in range(layout.stages)]
        return local, connect(self.groups.model_parallel, rank_of, device_of, self.meter)

    @property
    def forwards(self) -> list[LayerForward]:
        """Return the forwards of this rank's layers."""
        return [forward for stage in self.stages.values() for forward in stage.forwards]

    @property
    def holds_first_stage(self) -> bool:
        """Return whether this rank reads inputs."""
        return 0 in self.stages

    @property
    def holds_last_stage(self) -> bool:
        """Return whether this rank reads targets and computes the loss."""
        return self.plan.layout.stages - 1 in self.stages

    @property
    def schedule(self) -> Schedule:
        """Return the training schedule of this rank's replica, by rank."""
        return self.plan.schedule(self.replica)

    def actions(self, schedule: Schedule) -> tuple[Action, ...]:
        """Return this rank's list of a schedule of its group that does not train, validated."""
        ready = by_rank(schedule, self.plan.layout)
        validate([ready])
        return ready.workers[self.groups.model_parallel.rank]

    def context(self) -> int:
        """Return the number of tokens of a sample."""
        (inputs,) = read_samples(
            self.data.as_example().training.inputs,
            [np.zeros(1, dtype=np.int64)],
            Randomness(self.config.train.seed),
        )
        assert isinstance(inputs, Tensor)
        return inputs.shape[1]


def changing_buffers(run: Run) -> list[str]:
    """Return, as "layer/name", the saved buffers that forwards have changed; every rank calls this."""
    mine = [f"{forward.layer.name}/{name}" for forward in run.forwards for name in forward.buffers.changing]
    return sorted({name for theirs in run.world.all_gather_objects(mine) for name in theirs})


def _prepare_torch(config: Config, world: World) -> int:
    """Set torch's threads and determinism; return the number of threads."""
    threads = environment.threads_per_rank(config.threads, world.local_size, world.cores_of_rank)
    torch.set_num_threads(threads)
    if config.train.deterministic:
        environment.prepare_deterministic()
        torch.set_deterministic_debug_mode("error")  # use_deterministic_algorithms imports the compiler
    return threads


def _both(one: Callable[[], None], other: Callable[[], None]) -> Callable[[], None]:
    def call() -> None:
        one()
        other()

    return call
