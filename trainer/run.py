"""A run, put together from the configuration: everything that training, evaluation and generation share."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from trainer import environment
from trainer.averaging import HorovodAveraging, OneReplica, check_averaging
from trainer.config import Config, flat
from trainer.cut import Cut, cut_model
from trainer.data.build import load_data
from trainer.data.dataset import Data
from trainer.data.order import Order
from trainer.devices import devices_of_rank
from trainer.errors import UserError
from trainer.layout import Layout, deal, micro_batch_sizes
from trainer.loss_scale import LossScale
from trainer.memory import fit
from trainer.models.build import build_model
from trainer.models.freeze import freeze
from trainer.optimization import build_optimizer, check_groups, state_per_weight
from trainer.pipeline.build import build_layer
from trainer.pipeline.engine import Engine, Gradients
from trainer.pipeline.mpi_transport import MpiTransport
from trainer.pipeline.precision import COMPUTE_TYPES, Precision
from trainer.pipeline.randomness import Randomness
from trainer.pipeline.recomputation import Recompute
from trainer.pipeline.stage import BuiltLayer, Stage
from trainer.pipeline.statistics import RunningStatistics
from trainer.pipeline.ties import TiedParameters, tied_stages
from trainer.pipeline.transport import LocalTransport, Transport
from trainer.schedule.actions import Action, Schedule
from trainer.schedule.assemble import placement, training_schedule
from trainer.schedule.from_file import read_schedule
from trainer.schedule.machine import Machine
from trainer.schedule.merge import by_rank
from trainer.schedule.orders import ORDERS
from trainer.schedule.simulate import simulate_on
from trainer.schedule.timeline import Timeline
from trainer.schedule.validate import ScheduleError, validate
from trainer.sharding import Shards
from trainer.sizes import parse_size
from trainer.world import Groups, World, horovod, versions


class Run:
    """One rank's part of a run.

    Attributes:
        config: The whole configuration.
        world: All ranks.
        groups: This rank's model-parallel and data-parallel group.
        layout: Who holds what.
        data: The samples.
        order: Which of them a step trains on.
        model: Its layers, not built, and its loss; what `train.freeze` names is frozen.
        threads: How many this rank computes with.
        replica: The replica that this rank belongs to.
        micro_batches: Those of the global batch that the replica gets.
        ties: Which stages share parameters.
        devices: The devices that this rank drives.
        precision: What layers compute in.
        cut: The model's layers by stage, and their costs.
        stages: This rank's stages, by number.
        layers: The layers of these stages, in the model's order.
        statistics: Batch normalisation's, of these layers.
        shards: Of their parameters: one for each replica, or one for all of them.
        optimizer: Of the parameters in this rank's shard; None where there are none to train.
        loss_scale: What losses are multiplied by with precision=fp16; else None.
        randomness: What a forward's random numbers follow from.
        engine: Runs schedules on the stages.
        sizes: The size in samples of every micro-batch of the global batch.
    """

    def __init__(self, config: Config, world: World) -> None:
        self.config = config
        self.world = world
        self.precision = Precision(COMPUTE_TYPES[config.precision])
        self.loss_scale = LossScale() if config.precision == "fp16" else None
        horovod()  # told about before anything else, if it does not work
        world.agree("configuration", flat(config))
        world.agree("versions", versions())
        self._prepare_torch()
        self.data: Data = load_data(config.data, world)
        world.agree("data", {"fingerprint": self.data.fingerprint})
        self.order = Order(len(self.data.training), config.train.seed)
        self.model = freeze(build_model(config.model, self.data), config.train.freeze)
        check_groups(config.optimizer.groups, self.model)
        self._lay_out()
        self._validate_schedules()
        on_gpu = config.device != "cpu" and torch.cuda.is_available()
        self.groups: Groups = world.split(self.layout, threads=1 if on_gpu else self.threads)
        self._build()

    def _prepare_torch(self) -> None:
        self.threads = environment.threads_per_rank(self.config.threads, self.world.local_size)
        torch.set_num_threads(self.threads)
        if self.config.train.deterministic:
            environment.prepare_deterministic()
            torch.use_deterministic_algorithms(True)

    def _lay_out(self) -> None:
        """Decide which rank gets which layers and which micro-batches."""
        config, layers = self.config, self.model.layers
        asked, batch, training = config.layout, config.batch, self.data.training
        stages = asked.stages
        if config.schedule not in ORDERS:
            given = read_schedule(config.schedule)
            self.world.agree("schedule", {config.schedule: given.digest})
            stages = len(given.orders) if stages == "auto" else stages
        self.layout = Layout.of(
            self.world.size,
            stages,
            asked.devices_per_rank,
            len(layers),
            lambda workers: placement(config.schedule, workers, asked.virtual_stages),
        )
        check_averaging(config.averaging.op, self.layout.replicas)
        self.sizes = micro_batch_sizes(batch.global_size, batch.micro_size)
        self.replica = self.layout.replica(self.world.rank)
        self.micro_batches = deal(len(self.sizes), self.layout.replicas, self.replica)
        samples = np.arange(batch.micro_size) % len(training)
        recompute = Recompute(config.memory.recompute)
        self.cut: Cut = cut_model(
            self.model,
            training.inputs(samples),
            asked.boundaries,
            self.layout.placement,
            recompute=recompute,
            compute=self.precision.compute,
            targets=training.targets(samples),
        )
        self.ties = tied_stages(layers, self.cut.stage_of)
        if (limit := parse_size(config.memory.limit)) is not None:
            longest = self.schedule(max(self.shares))
            self.cut = fit(self.cut, longest, state_per_weight(config.optimizer), limit)

    def _validate_schedules(self) -> None:
        try:
            validate([self.schedule(share) for share in sorted(set(self.shares), reverse=True)], self.ties)
        except ScheduleError as error:
            raise UserError(str(error)) from error  # of a file: those of our own are right

    def _build(self) -> None:
        """Build this rank's layers, and what runs them."""
        config, layers = self.config, self.model.layers
        mine = self.layout.stages_of(self.groups.model_parallel.rank)
        devices = devices_of_rank(config.device, self.world.local_rank, self.layout.devices_per_rank)
        device_of = {stage: devices[self.layout.device_of(stage)] for stage in mine}
        self.devices = devices
        self.randomness = Randomness(config.train.seed)
        local = LocalTransport(device_of)
        remote: Transport = local
        if self.groups.model_parallel.size > 1:
            rank_of = [self.layout.group_rank_of(stage) for stage in range(self.layout.stages)]
            remote = MpiTransport(self.groups.model_parallel, rank_of, device_of)
        averaging, several = config.averaging, self.layout.replicas > 1
        gradients: Gradients = OneReplica()
        if several:
            gradients = HorovodAveraging(averaging.op, averaging.compression)
        last = self.layout.stages - 1
        self.stages = {
            stage: Stage(
                stage,
                [build_layer(layers, i, config.train.seed, device_of[stage]) for i in self.cut.stages[stage]],
                device_of[stage],
                loss=self.model.loss if stage == last else None,
                randomness=self.randomness,
                between=_both(remote.progress, gradients.progress),
                recompute=[self.cut.recompute[i] for i in self.cut.stages[stage]],
                precision=self.precision,
            )
            for stage in mine
        }
        self.layers: list[BuiltLayer] = [layer for stage in self.stages.values() for layer in stage.layers]
        self.statistics = RunningStatistics(self.layers)
        shards = self.layout.replicas if config.optimizer.sharded else 1
        self.shards = Shards(self.layers, shards, own=self.replica % shards)
        self.optimizer = build_optimizer(config.optimizer, self.layers, self.shards.has)
        self.engine = Engine(
            self.stages,
            last_stage=last,
            local=local,
            remote=remote,
            gradients=gradients,
            ties=TiedParameters(self.stages, layers, self.cut.stage_of),
        )

    @property
    def shares(self) -> list[int]:
        """Return how many micro-batches each replica gets."""
        replicas = self.layout.replicas
        return [len(deal(len(self.sizes), replicas, replica)) for replica in range(replicas)]

    @property
    def holds_first_stage(self) -> bool:
        """Return whether this rank reads inputs."""
        return 0 in self.stages

    @property
    def holds_last_stage(self) -> bool:
        """Return whether this rank reads targets and computes the loss."""
        return self.layout.stages - 1 in self.stages

    @lru_cache(maxsize=8)  # noqa: B019  (a run lives as long as its process)
    def schedule(self, micro_batches: int) -> Schedule:
        """Return the training schedule, by rank, of a replica's step with so many micro-batches."""
        schedule = training_schedule(
            self.config.schedule,
            self.layout.workers,
            micro_batches,
            self.ties,
            self.config.layout.virtual_stages,
            work=self.cut.work,
        )
        return by_rank(schedule, self.layout)

    def actions(self, schedule: Schedule) -> tuple[Action, ...]:
        """Return this rank's list of a schedule of its group that does not train, validated."""
        ready = by_rank(schedule, self.layout)
        validate([ready])
        return ready.workers[self.groups.model_parallel.rank]

    def prediction(self) -> Timeline:
        """Return this replica's step as simulated from the costs of the layers."""
        schedule = self.schedule(len(self.micro_batches))
        return simulate_on(Machine(self.cut.work), [schedule])[0]

    def context(self) -> int:
        """Return the number of tokens of a sample."""
        inputs = self.data.training.inputs(np.zeros(1, dtype=np.int64))
        assert isinstance(inputs, Tensor)
        return inputs.shape[1]


def _both(one: Callable[[], None], other: Callable[[], None]) -> Callable[[], None]:
    def call() -> None:
        one()
        other()

    return call
