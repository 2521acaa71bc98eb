"""The memory of a rank, and the least recomputation that makes it fit."""

from functools import partial

import pytest
import torch
from torch import nn

from tests.support.blocks import blocks
from tests.support.schedules import training_schedule
from trainer.config.schema import AdamWConfig, CustomOptimizerConfig, SGDConfig
from trainer.config.sizes import parse_size, size_text
from trainer.errors import UserError
from trainer.models.model import Layer, Model
from trainer.optim.build import state_per_weight
from trainer.pipeline.recomputation import Recompute
from trainer.plan.costs import layer_costs
from trainer.plan.memory import fit, predict
from trainer.plan.stages import Partition, partition_model

STAGES, MICRO_BATCHES = 2, 6
SCHEDULE = training_schedule("1f1b", STAGES, MICRO_BATCHES)


def cut() -> Partition:
    return partition_model(layer_costs(blocks(6), torch.zeros(32, 64)), None, range(STAGES))


def least(cut: Partition) -> float:
    """Return the time spent on recomputation."""
    return sum(cost.recompute_time(mode) for cost, mode in zip(cut.costs, cut.recompute, strict=True))


def test_sizes() -> None:
    assert parse_size("512MiB") == 512 * 2**20
    assert parse_size("1.5 GB") == 1_500_000_000
    assert parse_size(1048576) == parse_size("1048576B") == parse_size("1MiB")
    assert [parse_size(text) for text in ("much", "-1", "12 apples", "GiB", None)] == [None] * 5
    assert [size_text(n) for n in (0, 1023, 1024, 6.4 * 2**20, 3 * 2**40)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "6.4 MiB",
        "3.0 TiB",
    ]


def test_weights_gradients_state_and_messages() -> None:
    model = Model(tuple(Layer(f"l{i}", partial(nn.Linear, 10, 10)) for i in range(2)), blocks(1).loss)
    whole = partition_model(layer_costs(model, torch.zeros(4, 10)), None, range(2))
    memory = predict(whole, SCHEDULE, state=2)
    weights, message = 4 * 110, 4 * 4 * 10
    assert memory.fixed == (weights * 4 + 4 * message, weights * 4 + 8 * message)
    # The first stage: its output, not its input, twice. The second: both, once.
    assert memory.activations == (2 * message, 2 * message)


def test_state_of_optimizers() -> None:
    assert [state_per_weight(SGDConfig()), state_per_weight(SGDConfig(momentum=0.9))] == [0, 1]
    assert [state_per_weight(AdamWConfig()), state_per_weight(CustomOptimizerConfig())] == [2, 2]


def test_nothing_is_recomputed_where_everything_fits() -> None:
    whole = cut()
    enough = max(predict(whole, SCHEDULE, 2).total(rank) for rank in range(STAGES))
    assert fit(whole, SCHEDULE, 2, enough) == whole
    assert fit(whole, SCHEDULE, 2, enough - 1) != whole


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_every_rank_fits_at_about_the_least_time(share: float) -> None:
    whole = cut()
    frugal = Partition(whole.stages, whole.costs, (Recompute.FULL,) * 6)
    most, fewest = (
        max(predict(each, SCHEDULE, 2).total(rank) for rank in range(STAGES)) for each in (whole, frugal)
    )
    limit = int(fewest + share * (most - fewest))
    fitted = fit(whole, SCHEDULE, 2, limit)
    assert all(predict(fitted, SCHEDULE, 2).total(rank) <= limit for rank in range(STAGES))
    for stage, layers in enumerate(whole.stages):  # compared with all choices for a stage
        cheapest = min(
            least(way) for way in ways(whole, list(layers)) if predict(way, SCHEDULE, 2).total(stage) <= limit
        )
        spent = sum(fitted.costs[layer].recompute_time(fitted.recompute[layer]) for layer in layers)
        assert cheapest <= spent <= cheapest + fitted.costs[0].recompute_time(Recompute.FULL)


def ways(whole: Partition, layers: list[int]) -> list[Partition]:
    """Return the cut with every choice of modes for some layers."""
    cuts = [whole]
    for layer in layers:
        cuts = [
            Partition(each.stages, each.costs, (*each.recompute[:layer], mode, *each.recompute[layer + 1 :]))
            for each in cuts
            for mode in Recompute
        ]
    return cuts


def test_a_model_that_cannot_fit_is_reported() -> None:
    with pytest.raises(
        UserError, match=r"memory\.limit=1\.0 KiB is too small: rank 0 of a group needs .* MiB"
    ):
        fit(cut(), SCHEDULE, 2, 1024)
