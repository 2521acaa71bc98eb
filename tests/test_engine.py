"""The engine's steps: plain PyTorch's gradients, and the same bits for every cut of the model."""

from functools import partial
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.fixtures import FIXTURES
from tests.support.one_process import Given, Pipeline, share
from tests.support.two_steps import LAYERS, one_stage, two_steps
from trainer.models.gpt import MASKED
from trainer.models.model import Model
from trainer.pipeline.layer import BuiltLayer
from trainer.pipeline.micro_batches import MicroBatches
from trainer.replication.replication import Replication
from trainer.schedule.resolve import recipes, resolve

# A layer of "mixed" returns non-contiguous tensors. The engine makes them contiguous, so the next layer's
# kernel may add in another order than without the engine.
CONTIGUOUS = [name for name in FIXTURES if name != "mixed"]


def fits(schedule: str, sizes: tuple[int, ...]) -> bool:
    """Return whether a schedule can place these stages; ZB-V's workers hold two each."""
    recipe = resolve(schedule)
    return recipe.adjustable or len(sizes) % recipe.stages_per_worker == 0


def cuts(layers: int) -> list[tuple[int, ...]]:
    """Return stage sizes: every cut into 2, every third cut into 3, and one stage a layer."""
    inner = range(1, layers)
    starts = [*combinations(inner, 1), *[*combinations(inner, 2)][::3], tuple(inner)]
    return [tuple(np.diff((0, *first, layers)).tolist()) for first in starts]


CASES = [
    pytest.param(name, schedule, sizes, id=f"{name}, {schedule}, {'+'.join(map(str, sizes))}")
    for name in FIXTURES
    for schedule in recipes()
    for sizes in cuts(LAYERS[name])
    if fits(schedule, sizes)
]


@pytest.mark.parametrize(("name", "schedule", "sizes"), CASES)
def test_cut_and_schedule_change_no_bit(name: str, schedule: str, sizes: tuple[int, ...]) -> None:
    losses, gradients = one_stage(name)
    pipeline = Pipeline(FIXTURES[name].build(), sizes, schedule)
    assert two_steps(pipeline, name) == losses
    ours = pipeline.gradients()
    assert ours.keys() == gradients.keys()
    for parameter, gradient in gradients.items():
        assert (ours[parameter] is None) == (gradient is None), parameter
        assert gradient is None or torch.equal(ours[parameter], gradient), parameter


def total_count(model: Model, source: MicroBatches) -> int:
    return sum(model.loss.count(target) for target in source.all_targets())


def pipeline_gradients(name: str, sizes: tuple[int, ...]) -> tuple[float, dict[str, Tensor | None]]:
    """Return the mean loss and the gradients of a step without dropout, with one stage a layer."""
    model, source = FIXTURES[name].build(dropout=0.0), FIXTURES[name].micro_batches(sizes)
    count = total_count(model, source)
    pipeline = Pipeline(model, [1] * LAYERS[name])
    return sum(pipeline.train(source, len(sizes), 1 / count)) / count, pipeline.gradients()


class Plain:
    """The model in plain PyTorch: its layers in sequence, in one graph.

    Attributes:
        parameters: All parameters by layer and name; a shared one has several names.
        loss: The mean over all micro-batches.
    """

    def __init__(self, name: str, sizes: tuple[int, ...], *, shared: bool) -> None:
        """Run a step's forwards and backwards; ties become shared parameters, or the uses stay copies."""
        model, source = FIXTURES[name].build(dropout=0.0), FIXTURES[name].micro_batches(sizes)
        layers = Pipeline(model, [LAYERS[name]]).layers
        if shared:
            share(layers)
        network = nn.Sequential(*(layer.module for layer in layers)).train()
        self.parameters = {
            f"{layer.name}/{parameter}": value
            for layer in layers
            for parameter, value in layer.module.named_parameters()
        }
        count = total_count(model, source)
        self.loss = 0.0
        for i in range(len(sizes)):
            loss = model.loss(network(source.inputs(i)), source.targets(i)) / count
            loss.backward()
            self.loss += loss.item()

    def uses(self, parameter: str) -> int:
        """Return how many layers hold the parameter."""
        return sum(other is self.parameters[parameter] for other in self.parameters.values())


def assert_close(ours: Tensor | None, plain: Tensor | None, parameter: str) -> None:
    if plain is None:  # an unused parameter: the engine completes the gradients of all that it trains
        assert ours is None or torch.count_nonzero(ours) == 0, parameter
    else:
        largest = float(plain.abs().max())
        torch.testing.assert_close(ours, plain, rtol=0, atol=1e-6 * largest, msg=parameter)


@pytest.mark.parametrize("together", [False, True], ids=["by micro-batch", "full batch"])
@pytest.mark.parametrize("name", FIXTURES)
def test_gradients_match_plain_pytorch(name: str, together: bool) -> None:
    sizes = FIXTURES[name].sizes
    loss, gradients = pipeline_gradients(name, sizes)
    plain = Plain(name, (sum(sizes),) if together else sizes, shared=True)
    assert loss == pytest.approx(plain.loss, rel=1e-6)
    assert gradients.keys() == plain.parameters.keys()
    for parameter, gradient in gradients.items():
        assert_close(gradient, plain.parameters[parameter].grad, parameter)


@pytest.mark.parametrize("name", CONTIGUOUS)
def test_one_micro_batch_matches_plain_pytorch_to_the_bit(name: str) -> None:
    """Except with three or more uses, which PyTorch adds from the last layer to the first."""
    sizes = (sum(FIXTURES[name].sizes),)
    _, gradients = pipeline_gradients(name, sizes)
    plain = Plain(name, sizes, shared=True)
    few = [parameter for parameter in gradients if plain.uses(parameter) <= 2]
    assert len(few) > len(gradients) / 2
    for parameter in few:
        expected = plain.parameters[parameter].grad
        if expected is not None:
            assert torch.equal(gradients[parameter], expected), parameter


@pytest.mark.parametrize("name", CONTIGUOUS)
def test_uses_are_summed_in_the_order_of_layers(name: str) -> None:
    """Equal to the bit to PyTorch's gradients of the copies, however many; every copy gets the sum."""
    sizes = FIXTURES[name].sizes
    _, gradients = pipeline_gradients(name, sizes)
    plain = Plain(name, sizes, shared=False)
    expected = {name: parameter.grad for name, parameter in plain.parameters.items()}
    owners = {
        f"{layer.name}/{tie.parameter}": f"{tie.owner}/{tie.owner_parameter}"
        for layer in FIXTURES[name].build().layers
        for tie in layer.ties
    }
    for use, owner in owners.items():
        expected[owner] = expected[owner] + expected[use]
    for parameter, gradient in gradients.items():
        sum_of_uses = expected[owners.get(parameter, parameter)]
        if sum_of_uses is not None:
            assert torch.equal(gradient, sum_of_uses), parameter


def test_frozen_and_unused_parameters() -> None:
    pipeline = Pipeline(FIXTURES["mixed"].build(), [2, 2, 2])
    pipeline.train(FIXTURES["mixed"].micro_batches(), 4)
    gradients = pipeline.gradients()
    frozen = [name for name, gradient in gradients.items() if gradient is None]
    assert frozen == ["frozen/unused", "frozen/linear.weight", "frozen/linear.bias"]
    assert torch.count_nonzero(gradients["middle.0/unused"]) == 0
    assert torch.count_nonzero(gradients["middle.0/linear.weight"]) > 0


@pytest.mark.parametrize("name", FIXTURES)
def test_evaluation(name: str) -> None:
    """No dropout and no gradients, whatever was trained before."""
    fixture = FIXTURES[name]
    expected = Pipeline(fixture.build(), [LAYERS[name]]).evaluate(fixture.micro_batches(), 4)
    for sizes in cuts(LAYERS[name]):
        pipeline = Pipeline(fixture.build(), sizes)
        assert pipeline.evaluate(fixture.micro_batches(), 4) == expected
        assert all(gradient is None for gradient in pipeline.gradients().values())
    assert pipeline.train(fixture.micro_batches(), 4) != expected  # with dropout
    assert pipeline.evaluate(fixture.micro_batches(), 4) == expected


def test_micro_batch_without_targets() -> None:
    """It has a loss of zero, and adds nothing to the gradients."""
    fixture = FIXTURES["masked"]
    source = fixture.micro_batches()
    counts = [fixture.build().loss.count(target) for target in source.all_targets()]
    assert counts[1] == 0
    assert len(set(counts)) == len(counts)
    pipeline = Pipeline(fixture.build(dropout=0.0), [2, 3])
    losses = pipeline.train(source, 4)
    assert [loss > 0 for loss in losses] == [True, False, True, True]
    others = Pipeline(fixture.build(dropout=0.0), [2, 3])
    kept = [0, 2, 3]
    rest = Given([source.inputs(i) for i in kept], [source.targets(i) for i in kept])
    assert others.train(rest, 3) == [losses[i] for i in kept]
    for name, gradient in others.gradients().items():
        assert torch.equal(pipeline.gradients()[name], gradient)


def test_step_without_targets() -> None:
    """Gradients are zeros, neither missing nor NaN."""
    pipeline = Pipeline(FIXTURES["masked"].build(), [2, 3])
    tokens = torch.zeros(2, 8, dtype=torch.int64)
    losses = pipeline.train(Given([tokens], [torch.full_like(tokens, MASKED)]), 1)
    assert losses == [0.0]
    assert all(torch.count_nonzero(gradient) == 0 for gradient in pipeline.gradients().values())


class Noting(Replication):
    """Records when layers are averaged, and their gradients at that time."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []
        self.when_started: dict[str, list[Tensor]] = {}

    def start(self, layer: BuiltLayer) -> None:
        super().start(layer)
        self.notes.append(f"start {layer.name}")
        self.when_started[layer.name] = [parameter.grad.clone() for parameter in layer.trained()]

    def finish(self, layer: BuiltLayer) -> None:
        self.notes.append(f"finish {layer.name}")


@pytest.mark.slow
@pytest.mark.parametrize("schedule", recipes())
@pytest.mark.parametrize("name", FIXTURES)
def test_layers_are_averaged_once_and_complete(name: str, schedule: str) -> None:
    """Including a tied parameter's owner, whose last gradient comes from another layer."""
    for sizes in filter(partial(fits, schedule), [(LAYERS[name],), *cuts(LAYERS[name])]):
        noting = Noting()
        pipeline = Pipeline(FIXTURES[name].build(), sizes, schedule, gradients=noting)
        pipeline.train(FIXTURES[name].micro_batches(), 4)
        for layer in pipeline.layers:
            assert noting.notes.count(f"start {layer.name}") == 1
            assert noting.notes.count(f"finish {layer.name}") == 1
            now = [parameter.grad for parameter in layer.trained()]
            assert all(torch.equal(a, b) for a, b in zip(noting.when_started[layer.name], now, strict=True))
        assert len(noting.notes) == 2 * LAYERS[name]
