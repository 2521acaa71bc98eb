"""A model divided into stages: by the costs of its layers, or by hand."""

from collections.abc import Sequence
from dataclasses import dataclass

from trainer.pipeline.recomputation import Recompute
from trainer.plan.costs import LayerCost
from trainer.plan.partition import boundaries_from_user, partition_among_workers, stage_ranges
from trainer.schedule.actions import Kind

# Extra time of a split backward, relative to a full one: 3 % where its second part follows at once
# (`make bench-overhead`), 5 % in a pipeline, where other work comes between the parts.
SPLITTING = 0.05


@dataclass(frozen=True)
class Partition:
    """The layers of each stage, and their costs for one micro-batch.

    Attributes:
        stages: The layers of each stage.
        costs: The cost of every layer.
        recompute: The recomputation mode of every layer.
    """

    stages: tuple[range, ...]
    costs: tuple[LayerCost, ...]
    recompute: tuple[Recompute, ...]

    @property
    def stage_of(self) -> list[int]:
        """Return the stage of every layer."""
        return [stage for stage, layers in enumerate(self.stages) for _ in layers]

    @property
    def work(self) -> dict[Kind, list[float]]:
        """Return the relative times of forwards and backwards by stage, recomputation included.

        If no layer has counted operations, only the number of layers is known. Then all layers count as
        equal, and so do a forward and each part of a backward.
        """
        if not any(cost.flops_forward for cost in self.costs):
            layers = [float(len(layers)) for layers in self.stages]
            parts = (Kind.FORWARD, Kind.BACKWARD_INPUT, Kind.BACKWARD_WEIGHT)
            return dict.fromkeys(parts, layers) | {Kind.BACKWARD: [2 * each for each in layers]}
        times = [_times(cost, mode) for cost, mode in zip(self.costs, self.recompute, strict=True)]
        return {
            kind: [sum(times[layer][kind] for layer in layers) for layers in self.stages] for kind in times[0]
        }


def _times(cost: LayerCost, recompute: Recompute) -> dict[Kind, float]:
    """Return the relative time of each action on a layer."""
    backward, deferred = cost.backward + cost.recompute_time(recompute), cost.deferred_work
    overhead = SPLITTING / 2 * backward if deferred else 0.0
    return {
        Kind.FORWARD: cost.forward,
        Kind.BACKWARD: backward,
        Kind.BACKWARD_INPUT: backward - deferred + overhead,
        Kind.BACKWARD_WEIGHT: deferred + overhead,
    }


def partition_model(
    costs: Sequence[LayerCost],
    boundaries: Sequence[int] | None,
    placement: Sequence[int],
    recompute: Recompute = Recompute.NONE,
) -> Partition:
    """Return the layers of each stage.

    Args:
        costs: The cost of every layer.
        boundaries: The first layer of each stage but the first, or None for the best cut known. That is the
            exact optimum for the slowest worker if each worker holds one stage.
        placement: The worker that holds each stage.
        recompute: The recomputation mode of all layers.

    Raises:
        UserError: The boundaries do not fit the model.
    """
    costs = tuple(costs)
    if boundaries is None:
        boundaries = partition_among_workers(
            [cost.cost + cost.recompute_time(recompute) for cost in costs], placement
        )
    else:
        boundaries = boundaries_from_user(boundaries, len(costs), len(placement))
    return Partition(stage_ranges(boundaries, len(costs)), costs, (recompute,) * len(costs))
