"""A plan: what a run on a number of ranks will be. Pure: no MPI, no Horovod, no device, no built layer.

    configuration, model, layer costs, world size
        -> layout        which rank holds which stages of which replica
        -> partition     which layers each stage has, and what their backwards recompute
        -> schedules     what every rank does, one for each number of micro-batches that a replica can get
        -> memory, predicted step

The run is built from it (`trainer.run`), `python -m trainer.plan` compares many of them, and tests ask it
about worlds that are not here. All of it raises `UserError` for what the user can mend.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from trainer.config.schema import Config
from trainer.config.sizes import parse_size
from trainer.data.dataset import Data
from trainer.distributed.layout import Layout, assign_micro_batches, micro_batch_sizes
from trainer.errors import UserError
from trainer.models.model import Model
from trainer.optim.build import state_per_weight
from trainer.pipeline.micro_batches import read_samples
from trainer.pipeline.precision import COMPUTE_TYPES
from trainer.pipeline.randomness import Randomness
from trainer.pipeline.recomputation import Recompute
from trainer.pipeline.ties import tied_stages
from trainer.plan.costs import LayerCost, layer_costs
from trainer.plan.memory import Memory, fit, predict
from trainer.plan.stages import Partition, partition_model
from trainer.replication.averaging import check_averaging
from trainer.schedule.actions import Schedule, Tied
from trainer.schedule.assemble import training_schedule
from trainer.schedule.machine import Machine
from trainer.schedule.merge import by_rank
from trainer.schedule.recipe import ScheduleRecipe
from trainer.schedule.simulate import simulate_on
from trainer.schedule.timeline import Timeline
from trainer.schedule.validate import ScheduleError, validate


def model_costs(config: Config, model: Model, data: Data) -> tuple[LayerCost, ...]:
    """Return what every layer of the model costs for one micro-batch, whatever the layout.

    Args:
        config: The micro-batch's size and the precision.
        model: The model.
        data: Samples, of which only types and shapes matter.
    """
    samples = np.arange(config.batch.micro_size) % len(data.training)
    compute = COMPUTE_TYPES[config.precision]
    randomness = Randomness(config.train.seed)
    (inputs,) = read_samples(data.training.inputs, [samples], randomness)
    (targets,) = read_samples(data.training.targets, [samples], randomness)
    return tuple(layer_costs(model, inputs, compute, targets))


def may_read(config: Config, recipe: ScheduleRecipe, world: int, rank: int) -> bool:
    """Return whether a rank may hold the first or the last stage, as far as is known before the model is.

    Args:
        config: The run's configuration.
        recipe: Its schedule.
        world: The number of ranks.
        rank: The rank.
    """
    asked = config.layout
    workers = recipe.workers if asked.stages == "auto" else asked.stages
    if workers is None:  # one stage or two, none of which is in the middle
        return True
    try:
        placement = recipe.placement(workers, asked.virtual_stages)
        layout = Layout(world, workers, asked.devices_per_rank, placement)
    except UserError:  # the plan raises it again
        return True
    mine = layout.stages_of(layout.group_rank(rank))
    return 0 in mine or layout.stages - 1 in mine


class Plan:
    """What a run on `world` ranks will be.

    Args:
        config: The run's configuration.
        model: The model.
        costs: What its layers cost: see `model_costs`.
        world: The number of ranks.
        recipe: The schedule that the configuration names, resolved.

    Attributes:
        config: The configuration.
        model: The model.
        recipe: The schedule's.
        layout: Who holds what.
        sizes: The size in samples of every micro-batch of the global batch.
        shares: How many of them each replica gets.
        partition: The layers of each stage, their costs, and what their backwards recompute.
        ties: Which stages share parameters.

    Raises:
        UserError: The numbers do not fit together, or the memory limit is too small.
    """

    def __init__(
        self,
        config: Config,
        model: Model,
        costs: Sequence[LayerCost],
        world: int,
        recipe: ScheduleRecipe,
    ) -> None:
        self.config = config
        self.model = model
        self.recipe = recipe
        asked = config.layout
        self.layout = Layout.of(
            world,
            recipe.workers if asked.stages == "auto" and recipe.workers is not None else asked.stages,
            asked.devices_per_rank,
            len(model.layers),
            lambda workers: recipe.placement(workers, asked.virtual_stages),
        )
        replicas = self.layout.replicas
        check_averaging(config.averaging.op, replicas)
        self.sizes = micro_batch_sizes(config.batch.global_size, config.batch.micro_size)
        self.shares = [
            len(assign_micro_batches(len(self.sizes), replicas, replica)) for replica in range(replicas)
        ]
        partition = partition_model(
            costs, asked.boundaries, self.layout.placement, Recompute(config.memory.recompute)
        )
        self.ties: tuple[Tied, ...] = tied_stages(model.layers, partition.stage_of)
        self.partition, self._schedules = self._within_limit(partition)

    def _within_limit(self, partition: Partition) -> tuple[Partition, dict[int, Schedule]]:
        """Recompute as little as `memory.limit` takes; return the schedules for the work that results.

        Recomputation changes what backwards take, which changes the order of a schedule that depends on
        measured work, which changes how much is alive at a time. So the limit is held against the schedules
        of the final work, of every share. Layers only ever recompute more, so this ends.
        """
        limit = parse_size(self.config.memory.limit)
        while True:
            schedules = {share: self._schedule(partition, share) for share in sorted(set(self.shares))}
            if limit is None:
                return partition, schedules
            fitted = partition
            for schedule in schedules.values():
                fitted = fit(fitted, schedule, self.optimizer_state, limit, self.shards)
            if fitted == partition:
                return partition, schedules
            partition = fitted

    def _schedule(self, partition: Partition, micro_batches: int) -> Schedule:
        """Return the training schedule of a replica's step, by rank."""
        schedule = training_schedule(
            self.recipe,
            self.layout.workers,
            micro_batches,
            self.ties,
            self.config.layout.virtual_stages,
            work=partition.work,
        )
        return by_rank(schedule, self.layout)

    def schedule(self, replica: int = 0) -> Schedule:
        """Return the training schedule of a replica, with a list of actions for every rank of its group."""
        return self._schedules[self.shares[replica]]

    @property
    def schedules(self) -> list[Schedule]:
        """Return the training schedule of every replica."""
        return [self._schedules[share] for share in self.shares]

    def validate(self) -> None:
        """Check that the schedules compute a step and come to an end.

        Raises:
            UserError: A schedule from a file does not; the others are right by construction.
        """
        try:
            validate([self._schedules[share] for share in sorted(self._schedules, reverse=True)], self.ties)
        except ScheduleError as error:
            raise UserError(str(error)) from error

    def micro_batches(self, replica: int) -> range:
        """Return the micro-batches of the global batch that a replica trains on."""
        return assign_micro_batches(len(self.sizes), self.layout.replicas, replica)

    @property
    def shards(self) -> int:
        """Return among how many replicas the optimizer's state is divided."""
        return self.layout.replicas if self.config.optimizer.sharded else 1

    @property
    def optimizer_state(self) -> int:
        """Return how many numbers the optimizer keeps for each weight."""
        return state_per_weight(self.config.optimizer)

    @cached_property
    def memory(self) -> Memory:
        """Return the bytes that each rank of the replica with most micro-batches holds."""
        schedule = self._schedules[max(self.shares)]
        return predict(self.partition, schedule, self.optimizer_state, self.shards)

    def prediction(self, replica: int = 0) -> Timeline:
        """Return a replica's step as simulated from the costs of the layers, in operations."""
        return simulate_on(Machine(self.partition.work), [self.schedule(replica)])[0]
