"""The table at the start of a run, for hand-made layouts."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from tests.support.modules import Own
from tests.support.schedules import training_schedule
from trainer.config.sizes import size_text
from trainer.distributed.layout import Layout
from trainer.models.model import Layer, Model
from trainer.models.simplenet import BinaryLoss
from trainer.pipeline.recomputation import Recompute
from trainer.plan.costs import layer_costs
from trainer.plan.memory import predict
from trainer.plan.stages import Partition, partition_model
from trainer.plan.table import stages_table

WIDTH = 24


class Opaque(nn.Linear):
    """Computes with other weights than its parameters."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, 2 * self.weight, 2 * self.bias)


def cut(*last_stage: Layer) -> Partition:
    """Return three linear layers in two stages, and a last stage."""
    layers = [Layer(f"linear.{number}", partial(nn.Linear, WIDTH, WIDTH)) for number in range(3)]
    model = Model((*layers, *last_stage), BinaryLoss())
    return partition_model(layer_costs(model, torch.empty(4, WIDTH)), [2, 3], range(3))


def text(partition: Partition, schedule: str) -> str:
    lists = training_schedule(schedule, 3, 4)
    return stages_table(Layout(6, 3), partition, lists, predict(partition, lists, state=2))


def table(schedule: str, *last_stage: Layer) -> list[list[str]]:
    """Return the table's lines in words."""
    return [line.split() for line in text(cut(*last_stage), schedule).splitlines()]


def test_stages() -> None:
    head, first, second, third = table("1f1b", Layer("last", partial(nn.Linear, WIDTH, 1)))
    assert head == ["stage", "ranks", "layers", "parameters", "bytes", "work", "memory"]
    assert first[:-3] == ["0", "0", "3", "linear.0", "..", "linear.1", "(2)", "1,200", "4.7", "KiB"]
    assert second[:-3] == ["1", "1", "4", "linear.2", "600", "2.3", "KiB"]
    assert third[:-3] == ["2", "2", "5", "last", "25", "100", "B"]
    assert sum(int(line[-3].rstrip("%")) for line in (first, second, third)) == pytest.approx(100, abs=1)


def test_memory_of_a_rank_is_shown_with_its_first_stage() -> None:
    """Weights, gradients, two numbers a weight, messages at both ends, and peak activations."""
    partition = cut(Layer("last", partial(nn.Linear, WIDTH, 1)))
    memory = predict(partition, training_schedule("1f1b", 3, 4), state=2)
    lines = text(partition, "1f1b").splitlines()[1:]
    for rank, (line, weights) in enumerate(zip(lines, (4800, 2400, 100), strict=True)):
        assert memory.fixed[rank] >= 4 * weights
        assert line.endswith(f"  {size_text(memory.fixed[rank] + memory.activations[rank])}")
    both = replace(training_schedule("1f1b", 3, 4), placement=(0, 1, 0))
    rows = stages_table(Layout(2, 2, placement=(0, 1, 0)), partition, both, memory).splitlines()[1:]
    assert [row.rstrip().endswith("%") for row in rows] == [False, False, True]


@pytest.mark.parametrize(
    ("build", "share"),
    [
        pytest.param(partial(nn.Linear, WIDTH, 1), "100.0%", id="all"),
        pytest.param(lambda: nn.Sequential(nn.Linear(WIDTH, 1), nn.LayerNorm(1)), "92.6%", id="most"),
        pytest.param(Own, "100.0%", id="a custom autograd function"),
    ],
)
def test_deferred_share(build: Callable[[], nn.Module], share: str) -> None:
    """ZB-H1's first stage has full backwards."""
    lines = table("zb_h1", Layer("last", build))
    assert [line[-1] for line in lines] == ["deferred", "none", "100.0%", share]


def test_layers_that_defer_nothing_are_named() -> None:
    """But not those that have nothing to defer."""
    last = [
        Layer("norm", partial(nn.LayerNorm, WIDTH)),
        Layer("tanh", nn.Tanh),
        Layer("opaque", partial(Opaque, WIDTH, WIDTH)),
        Layer("frozen", lambda: nn.LayerNorm(WIDTH).requires_grad_(False)),
    ]
    *_, stage, line = table("zb_h1", *last)
    assert stage[-1] == "none"
    assert line == ["not", "split:", "norm,", "opaque"]


def test_number_of_recomputed_layers() -> None:
    whole = cut(Layer("last", partial(nn.Linear, WIDTH, 1)))
    modes = (Recompute.FULL, Recompute.NONE, Recompute.SELECTIVE, Recompute.FULL)
    *stages, full, selective = text(replace(whole, recompute=modes), "zb_h1").splitlines()
    assert [line.split()[-1] for line in stages] == ["deferred", "none", "100.0%", "100.0%"]
    assert (full, selective) == (
        "  recomputed: 2 of 4 layers (full)",
        "  recomputed: 1 of 4 layers (selective)",
    )
