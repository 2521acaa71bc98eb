"""The engine's steps: the gradients of plain PyTorch, and the same bits however the model is cut."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.one_process import Given, Pipeline, share
from tests.parallel.models import mixed, ragged
from trainer.averaging import OneReplica
from trainer.config import GPTConfig
from trainer.data.dataset import Data
from trainer.models.gpt import MASKED, gpt
from trainer.pipeline.stage import BuiltLayer

GPT = GPTConfig(blocks=3, width=16, heads=2, context=8, dropout=0.1)
SIZES = [2, 2, 2, 1]  # of the micro-batches, in samples
CUTS = [[1, 1, 1, 1, 1], [2, 3], [4, 1], [1, 3, 1]]
MIXED_CUTS = [[2, 2, 2], [1, 1, 1, 1, 1, 1], [3, 3], [1, 5]]


class Tokens:
    """Nothing but a shape: what a GPT looks at before it is built."""

    def inputs(self, samples: np.ndarray) -> Tensor:
        return torch.zeros(len(samples), 8, dtype=torch.int64)


DATA = Data(Tokens(), Tokens(), "", vocabulary=11)  # type: ignore[arg-type]


def batches(length: int = 8) -> Given:
    chance = torch.Generator().manual_seed(0)
    tokens = [torch.randint(11, (size, length + 1), generator=chance) for size in SIZES]
    return Given([row[:, :-1] for row in tokens], [row[:, 1:] for row in tokens])


def mixed_batches() -> Given:
    data = ragged().training
    samples = np.split(np.arange(7), np.cumsum(SIZES)[:-1])
    return Given([data.inputs(part) for part in samples], [data.targets(part) for part in samples])


def assert_same_bits(one: Pipeline, other: Pipeline) -> None:
    ours, theirs = one.gradients(), other.gradients()
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        assert (gradient is None) == (theirs[name] is None), name
        assert gradient is None or torch.equal(gradient, theirs[name]), name


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("sizes", [[5], [2, 3], [1, 1, 1, 1, 1]])
def test_gradients_are_plain_pytorch_s(sizes: list[int], tied: bool) -> None:
    model = gpt(replace(GPT, dropout=0.0, tied=tied), DATA)
    pipeline, plain = Pipeline(model, sizes), Pipeline(model, [5]).layers
    source = batches()
    losses = pipeline.train(source, len(SIZES), scale=1 / 56)
    share(plain)
    network = torch.nn.Sequential(*(layer.module for layer in plain))
    tokens = torch.cat([source.inputs(i) for i in range(len(SIZES))])
    targets = torch.cat([source.targets(i) for i in range(len(SIZES))])
    expected = torch.nn.functional.cross_entropy(network(tokens).flatten(0, 1), targets.flatten())
    expected.backward()
    assert sum(losses) / 56 == pytest.approx(expected.item(), rel=1e-6)
    gradients = pipeline.gradients()
    for layer in plain:
        for name, parameter in layer.module.named_parameters():
            torch.testing.assert_close(
                gradients[f"{layer.name}/{name}"], parameter.grad, rtol=1e-4, atol=1e-7
            )


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe"])
@pytest.mark.parametrize("sizes", CUTS)
def test_cut_and_schedule_change_no_bit(sizes: list[int], schedule: str) -> None:
    model = gpt(GPT, DATA)
    one, other = Pipeline(model, [5]), Pipeline(model, sizes, schedule)
    assert other.train(batches(), len(SIZES), 1 / 56) == one.train(batches(), len(SIZES), 1 / 56)
    assert_same_bits(one, other)


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe"])
@pytest.mark.parametrize("sizes", MIXED_CUTS)
def test_mixed_activations(sizes: list[int], schedule: str) -> None:
    """Tuples, dicts, None, masks, integers, skips; changing shapes; frozen, unused and tied parameters."""
    model = mixed(ragged())
    one, other = Pipeline(model, [6]), Pipeline(model, sizes, schedule)
    for _ in range(2):  # gradients of a second step add to the first's, as nothing clears them
        assert other.train(mixed_batches(), len(SIZES)) == one.train(mixed_batches(), len(SIZES))
    assert_same_bits(one, other)


def test_frozen_and_unused_parameters() -> None:
    pipeline = Pipeline(mixed(ragged()), [2, 2, 2])
    pipeline.train(mixed_batches(), len(SIZES))
    gradients = pipeline.gradients()
    frozen = [name for name, gradient in gradients.items() if gradient is None]
    assert frozen == ["frozen/unused", "frozen/linear.weight", "frozen/linear.bias"]
    assert torch.count_nonzero(gradients["middle.0/unused"]) == 0
    assert torch.count_nonzero(gradients["middle.0/linear.weight"]) > 0


@pytest.mark.parametrize("sizes", MIXED_CUTS)
def test_every_copy_of_a_tied_parameter_gets_the_sum(sizes: list[int]) -> None:
    pipeline = Pipeline(mixed(ragged()), sizes)
    pipeline.train(mixed_batches(), len(SIZES))
    gradients = pipeline.gradients()
    assert torch.equal(gradients["again/again.weight"], gradients["first/tokens.weight"])
    assert torch.equal(gradients["last/linear.weight"], gradients["first/tokens.weight"])


@pytest.mark.parametrize("sizes", CUTS)
def test_evaluation(sizes: list[int]) -> None:
    """No dropout, no gradients, whatever was trained before."""
    model = gpt(GPT, DATA)
    one, other = Pipeline(model, [5]), Pipeline(model, sizes)
    expected = one.evaluate(batches(), len(SIZES))
    assert other.evaluate(batches(), len(SIZES)) == expected
    assert all(gradient is None for gradient in other.gradients().values())
    other.train(batches(), len(SIZES))
    assert other.evaluate(batches(), len(SIZES)) == expected
    assert other.train(batches(), len(SIZES)) != expected  # with dropout


def test_masked_micro_batch() -> None:
    """One without any target has a loss of zero, and gradients of zero."""
    model = gpt(replace(GPT, dropout=0.0), DATA)
    pipeline = Pipeline(model, [2, 3])
    tokens = torch.zeros(2, 8, dtype=torch.int64)
    losses = pipeline.train(Given([tokens], [torch.full_like(tokens, MASKED)]), 1)
    assert losses == [0.0]
    assert all(torch.count_nonzero(gradient) == 0 for gradient in pipeline.gradients().values())


class Noting(OneReplica):
    """Notes when layers are averaged, and that their gradients are complete then."""

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


@pytest.mark.parametrize("sizes", [[5], [2, 3], [1, 1, 1, 1, 1]])
def test_layers_are_averaged_once_and_complete(sizes: list[int]) -> None:
    """The tied embedding too: its last gradient comes from the head."""
    noting = Noting()
    pipeline = Pipeline(gpt(GPT, DATA), sizes, gradients=noting)
    pipeline.train(batches(), len(SIZES))
    names = [layer.name for layer in pipeline.layers]
    assert sorted(noting.notes) == sorted(
        [f"{what} {name}" for name in names for what in ("start", "finish")]
    )
    for layer in pipeline.layers:
        now = [parameter.grad for parameter in layer.trained()]
        assert all(torch.equal(a, b) for a, b in zip(noting.when_started[layer.name], now, strict=True))
    assert noting.notes.index("start head") < noting.notes.index("start embedding")
