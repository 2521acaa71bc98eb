"""The model, cut into stages: by the costs of its layers, or by hand."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from trainer.costs import LayerCost, layer_costs
from trainer.models.model import Activation, Model
from trainer.partition import boundaries_from_user, partition_among_workers, stage_ranges


@dataclass(frozen=True)
class Cut:
    """Which layers each stage has, and what layers cost for one micro-batch."""

    stages: tuple[range, ...]
    costs: tuple[LayerCost, ...]

    @property
    def stage_of(self) -> list[int]:
        """Return the stage of every layer."""
        return [stage for stage, layers in enumerate(self.stages) for _ in layers]

    @property
    def forward(self) -> list[float]:
        """Return the relative time of each stage's forward."""
        return [sum(self.costs[layer].forward for layer in layers) for layers in self.stages]

    @property
    def backward(self) -> list[float]:
        """Return the relative time of each stage's backward."""
        return [sum(self.costs[layer].backward for layer in layers) for layers in self.stages]


def cut_model(
    model: Model,
    inputs: Activation,
    boundaries: Sequence[int] | None,
    placement: Sequence[int],
    compute: torch.dtype = torch.float32,
) -> Cut:
    """Return the model's layers by stage.

    Args:
        model: The model.
        inputs: A micro-batch of inputs; only shapes and types matter.
        boundaries: The first layer of each stage but the first, or None for the best cut
            known: the exact optimum of the slowest worker where each holds one stage.
        placement: The worker that holds each stage.
        compute: The type that layers compute in.

    Raises:
        UserError: The boundaries do not fit the model.
    """
    costs = tuple(layer_costs(model, inputs, compute))
    if boundaries is None:
        boundaries = partition_among_workers([cost.cost for cost in costs], placement)
    else:
        boundaries = boundaries_from_user(boundaries, len(costs), len(placement))
    return Cut(stage_ranges(boundaries, len(costs)), costs)
