"""A layer's forward sees the same whenever it runs, or the run stops and names the layer."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.blocks import Squares
from tests.support.one_process import Given, Pipeline
from trainer.errors import notes
from trainer.models.model import Layer, Model
from trainer.pipeline.precision import Precision
from trainer.pipeline.recomputation import Recompute

WIDTH, SAMPLES, MICRO_BATCHES = 6, 4, 5
LESS = [Recompute.SELECTIVE, Recompute.FULL]


class Base(nn.Module):
    """A linear layer before something odd."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)


class Plain(Base):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        return y


class Draws(Base):
    """Draws from every global generator."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(F.dropout(x, 0.3, self.training)) + np.random.randn() * random.random()
        return F.dropout(x, 0.2)


class MovingMean(Base):
    """Normalises by a moving mean, and counts its forwards."""

    mean: Tensor
    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("late", None)

    def forward(self, x: Tensor) -> Tensor:
        self.mean.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
        self.calls += 1
        self.late = x.detach().sum() if self.late is None else self.late + 1
        return self.linear(x - self.mean).tanh() * self.mean * self.late


class WritesIntoInput(Base):
    def forward(self, x: Tensor) -> Tensor:
        x += 1
        x[:, 0] = 0.5
        F.relu_(x)
        return self.linear(x)


class WritesSometimes(Base):
    """Writes into its input from its third forward on."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        if self.calls > 2:
            x.mul_(0.5)
        return self.linear(x)


class FillsLate(Base):
    """Hands noise to autograd before it is filled."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rrelu(self.linear(x), training=True)


def spectral() -> nn.Module:
    return nn.utils.parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH))


KINDS: list[Callable[[], nn.Module]] = [
    Draws,
    MovingMean,
    WritesIntoInput,
    WritesSometimes,
    FillsLate,
    spectral,
]


def given() -> Given:
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(SAMPLES, WIDTH, generator=generator) for _ in range(MICRO_BATCHES)]
    return Given(inputs, inputs)


def pipeline(build: Callable[[], nn.Module], *sizes: int, **options: Any) -> Pipeline:
    layers = tuple(Layer(f"layer.{i}", build if i else Plain) for i in range(sum(sizes)))
    return Pipeline(Model(layers, Squares()), sizes, **options)


def trained(of: Pipeline) -> dict[str, Tensor]:
    """Train two steps; return losses, gradients and buffers."""
    found = {}
    for step in (1, 2):
        of.randomness.step = step
        found[f"losses {step}"] = torch.tensor(of.train(given(), MICRO_BATCHES))
    found |= {name: gradient for name, gradient in of.gradients().items() if gradient is not None}
    for layer in of.layers:
        found |= {f"{layer.name}/{name}": buffer for name, buffer in layer.module.named_buffers()}
    return found


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
        assert tensor.isfinite().all()


@pytest.mark.parametrize("schedule", ["1f1b", "zb_h1"])
@pytest.mark.parametrize("recompute", LESS, ids=lambda mode: mode.value)
@pytest.mark.parametrize("build", KINDS)
def test_recomputation_changes_no_bit(
    build: Callable[[], nn.Module], recompute: Recompute, schedule: str
) -> None:
    expected = trained(pipeline(build, 4))
    assert_same(trained(pipeline(build, 4, schedule=schedule, recompute=recompute)), expected)
    assert_same(trained(pipeline(build, 2, 1, 1, schedule=schedule, recompute=recompute)), expected)


@pytest.mark.parametrize("build", [Draws, MovingMean, WritesIntoInput, spectral])
def test_it_is_plain_pytorch(build: Callable[[], nn.Module]) -> None:
    """Micro-batches one after another through an `nn.Sequential`, under the seeds of the documentation."""
    of = pipeline(build, 1, 1)
    plain = pipeline(build, 1, 1)
    losses = of.train(given(), MICRO_BATCHES)
    for i, loss in enumerate(losses):
        x = given().inputs(i).clone()
        for layer in plain.layers:
            plain.randomness.seed_layer(layer.name, i, torch.device("cpu"))
            x = layer.module(x.clone())
        x.square().sum().backward()
        assert x.square().sum().item() == loss
    for name, gradient in plain.gradients().items():
        assert torch.equal(gradient, of.gradients()[name]), name  # type: ignore[arg-type]


def test_evaluation_draws_the_same_every_time() -> None:
    of = pipeline(Draws, 2, 1)
    of.randomness.step = None
    first = of.evaluate(given(), MICRO_BATCHES)
    of.randomness.step = 7
    of.train(given(), MICRO_BATCHES)
    of.randomness.step = None
    assert of.evaluate(given(), MICRO_BATCHES) == first
    assert pipeline(Draws, 3).evaluate(given(), MICRO_BATCHES) != first  # a step, not a validation
    assert len(set(first)) == MICRO_BATCHES


def test_what_it_draws_depends_on_step_and_layer() -> None:
    of = pipeline(Draws, 2)
    drawn = set()
    for step in (1, 2):
        of.randomness.step = step
        drawn |= set(of.train(given(), MICRO_BATCHES))
    assert len(drawn) == 2 * MICRO_BATCHES


class OwnGenerator(Base):
    def __init__(self) -> None:
        super().__init__()
        self.chance = np.random.default_rng(0)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * self.chance.random()


class CountsCalls(Base):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.linear(x) / self.calls


class Forgets(Base):
    """Hands on a tensor more in its first forwards."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Any) -> Any:
        self.calls += 1
        x = self.linear(x if isinstance(x, Tensor) else x[0])
        return (x, x.detach()) if self.calls <= MICRO_BATCHES else (x,)


class Unwraps(nn.Module):
    def forward(self, x: Any) -> Tensor:
        y: Tensor = x[0]
        return y


@pytest.mark.parametrize("recompute", LESS, ids=lambda mode: mode.value)
@pytest.mark.parametrize("build", [OwnGenerator, CountsCalls, Forgets])
@pytest.mark.parametrize("schedule", ["1f1b", "zb_h1"])
def test_another_second_forward_stops_the_run(
    build: Callable[[], nn.Module], recompute: Recompute, schedule: str
) -> None:
    odd = [Layer("first", Plain), Layer("odd", build), Layer("last", Unwraps if build is Forgets else Plain)]
    of = Pipeline(Model(tuple(odd), Squares()), [1, 2], schedule, recompute=recompute)
    of.randomness.step = 3
    with pytest.raises(RuntimeError, match="run again for the backward, gives other results") as caught:
        of.train(given(), MICRO_BATCHES)
    place, direction = notes(caught.value)
    assert place.startswith("in layer 'odd' of stage 1: micro-batch ")
    assert place.endswith(" of step 3")
    assert direction == "in the backward of layer 'odd'"


class WritesIntoMask(Base):
    """Writes into an integer input, which autograd does not protect, from its third forward on."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, mask = inputs
        self.calls += 1
        if self.calls > 2:
            mask.zero_()
        return self.linear(x) * mask, mask


def test_a_write_that_autograd_does_not_see_is_noticed() -> None:
    first = Given(
        [(torch.ones(2, WIDTH), torch.ones(2, 1, dtype=torch.int64)) for _ in range(3)], [torch.ones(2)] * 3
    )
    of = Pipeline(Model((Layer("odd", WritesIntoMask), Layer("last", Unwraps)), Squares()), [1, 1])
    with pytest.raises(RuntimeError, match="wrote into its input") as caught:
        of.train(first, 3)
    assert notes(caught.value) == ["in layer 'odd' of stage 0: micro-batch 2 of step 0"]


def test_data_is_not_written_into() -> None:
    """The first layer gets the data's own tensors."""
    of = Pipeline(Model((Layer("first", WritesIntoInput),), Squares()), [1])
    source = given()
    before = [source.inputs(i).clone() for i in range(MICRO_BATCHES)]
    of.train(source, MICRO_BATCHES)
    assert all(torch.equal(source.inputs(i), before[i]) for i in range(MICRO_BATCHES))


class Gated(Base):
    """Changes a buffer of `size` bytes from a certain forward on."""

    big: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("big", torch.zeros(size, dtype=torch.uint8))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > 12:
            self.big += 1
        return self.linear(x) * (1 + self.big[0])


@pytest.mark.parametrize("recompute", Recompute, ids=lambda mode: mode.value)
def test_a_buffer_may_begin_to_change_late(recompute: Recompute) -> None:
    runs = [pipeline(lambda: Gated(100), 2, recompute=mode) for mode in (Recompute.NONE, recompute)]
    for step in (1, 2, 3, 4):
        for of in runs:
            of.randomness.step = step
        assert len({tuple(of.train(given(), MICRO_BATCHES)) for of in runs}) == 1
    one, other = (of.gradients() for of in runs)
    assert all(torch.equal(one[name], other[name]) for name in one)  # type: ignore[arg-type]


def test_a_large_buffer_that_begins_to_change_late_is_refused_where_it_matters() -> None:
    of = pipeline(lambda: Gated(2 << 20), 2, recompute=Recompute.FULL)
    for _ in range(2):
        of.train(given(), MICRO_BATCHES)
    with pytest.raises(RuntimeError, match="the buffer 'big' for the first time after 12 forwards"):
        of.train(given(), MICRO_BATCHES)


def test_a_skipped_step_leaves_no_trace_in_buffers() -> None:
    of = pipeline(MovingMean, 2, 1)
    forwards = [forward for stage in of.stages.values() for forward in stage.forwards]
    states = []
    for _ in range(2):
        for forward in forwards:
            forward.buffers.begin_step()
        of.train(given(), MICRO_BATCHES)
        for forward in forwards:
            forward.buffers.forget_step()
        states.append([buffer.clone() for layer in of.layers for buffer in layer.module.buffers()])
    assert all(torch.equal(one, torch.zeros_like(one)) for one in states[0])
    assert all(torch.equal(one, other) for one, other in zip(*states, strict=True))


def test_an_error_names_layer_step_and_micro_batch() -> None:
    class Breaks(Base):
        def forward(self, x: Tensor) -> Tensor:
            return x @ torch.zeros(3, 3)

    layers = (Layer("good", Plain), Layer("bad", Breaks))
    of = Pipeline(Model(layers, Squares()), [2])
    of.randomness.step, of.randomness.first_micro_batch = 4, 10
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as caught:
        of.train(given(), MICRO_BATCHES)
    assert notes(caught.value) == ["in layer 'bad' of stage 0: micro-batch 10 of step 4"]


def test_an_error_of_types_points_to_the_precision() -> None:
    class Mixes(Base):
        def forward(self, x: Tensor) -> Tensor:
            return x @ torch.eye(WIDTH, dtype=torch.float64).to(x.device) @ torch.eye(WIDTH)

    layers = (Layer("good", Plain), Layer("bad", Mixes))
    half = Pipeline(Model(layers, Squares()), [2], precision=Precision(torch.bfloat16))
    whole = Pipeline(Model(layers, Squares()), [2])
    found = []
    for of in (half, whole):
        with pytest.raises(RuntimeError) as caught:
            of.train(given(), MICRO_BATCHES)
        found.append(notes(caught.value)[1:])
    assert found == [["precision may be the cause: layers compute in half precision; try fp32"], []]
