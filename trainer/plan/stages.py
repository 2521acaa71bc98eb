"""The model, cut into stages: by the costs of its layers, or by hand."""

from collections.abc import Sequence
from dataclasses import dataclass

from trainer.pipeline.recomputation import Recompute
from trainer.plan.costs import LayerCost
from trainer.plan.partition import boundaries_from_user, partition_among_workers, stage_ranges
from trainer.schedule.actions import Kind

# What two parts take more than a whole backward, relative to it: 3 % where one follows the other
# (`make bench-overhead`), 5 % in a pipeline, where other work comes between them.
SPLITTING = 0.05


@dataclass(frozen=True)
class Partition:
    """Which layers each stage has, and what layers cost for one micro-batch.

    Attributes:
        stages: The layers of each stage.
        costs: Of every layer.
        recompute: What every layer's backward computes again.
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
        """Return the relative time of forwards and backwards by stage, with what backwards compute again.

        Where no operations are counted in any layer, nothing is known of them but that they are there: then
        all layers are equal, and so are a forward and both parts of a backward.
        """
        if not any(cost.flops_forward for cost in self.costs):
            layers = [float(len(layers)) for layers in self.stages]
            parts = (Kind.FORWARD, Kind.BACKWARD_INPUT, Kind.BACKWARD_WEIGHT)
            return dict.fromkeys(parts, layers) | {Kind.BACKWARD: [2 * each for each in layers]}
        forward = [cost.forward for cost in self.costs]
        again = [
            cost.recompute_time(recompute) for cost, recompute in zip(self.costs, self.recompute, strict=True)
        ]
        backward = [cost.backward + repeated for cost, repeated in zip(self.costs, again, strict=True)]
        deferred = [cost.deferred_work for cost in self.costs]
        more = [
            SPLITTING / 2 * all_ if later else 0.0 for all_, later in zip(backward, deferred, strict=True)
        ]
        times = {
            Kind.FORWARD: forward,
            Kind.BACKWARD: backward,
            Kind.BACKWARD_INPUT: [
                all_ - later + extra for all_, later, extra in zip(backward, deferred, more, strict=True)
            ],
            Kind.BACKWARD_WEIGHT: [later + extra for later, extra in zip(deferred, more, strict=True)],
        }
        return {
            kind: [sum(each[layer] for layer in layers) for layers in self.stages]
            for kind, each in times.items()
        }


def partition_model(
    costs: Sequence[LayerCost],
    boundaries: Sequence[int] | None,
    placement: Sequence[int],
    recompute: Recompute = Recompute.NONE,
) -> Partition:
    """Return the layers of each stage.

    Args:
        costs: What every layer costs.
        boundaries: The first layer of each stage but the first, or None for the best cut known: the exact
            optimum of the slowest worker where each holds one stage.
        placement: The worker that holds each stage.
        recompute: What every layer's backward recomputes.

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
