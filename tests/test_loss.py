"""The loss: what it may be, what is refused, and one that has parameters."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.one_process import Given, Pipeline
from trainer.errors import UserError, notes
from trainer.models.model import Layer, Model
from trainer.pipeline.layer import BuiltLayer
from trainer.pipeline.loss import LossForward, count_of
from trainer.pipeline.randomness import Randomness
from trainer.replication.replication import Replication, gradients_of

CPU = torch.device("cpu")
OUTPUT, TARGET = torch.randn(8, 3), torch.randint(0, 3, (8,))


class Loss:
    """A loss made of a function."""

    def __init__(self, function: Callable[[Any, Any], Any], count: Callable[[Any], Any] = len) -> None:
        self._function = function
        self._count = count

    def count(self, target: Any) -> Any:
        return self._count(target)

    def __call__(self, output: Any, target: Any) -> Any:
        return self._function(output, target)


def run(loss: Any, output: Any = OUTPUT, target: Any = TARGET) -> Tensor:
    leaf = output.detach().requires_grad_() if isinstance(output, Tensor) else output
    return LossForward(loss, CPU, Randomness(0)).run(2, leaf, target)


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target, reduction="sum")


def test_a_sum() -> None:
    assert run(Loss(cross_entropy)) == cross_entropy(OUTPUT, TARGET)
    assert run(Loss(lambda output, target: cross_entropy(output, target).reshape(1))).shape == ()


def test_a_mean_is_refused() -> None:
    with pytest.raises(UserError, match=r"the mean of its terms: .* must return their sum") as caught:
        run(Loss(F.cross_entropy))
    assert notes(caught.value) == ["in the loss: micro-batch 2 of step 0"]


def test_a_mean_of_squares_over_numbers_is_refused() -> None:
    with pytest.raises(UserError, match="the mean of its terms"):
        run(Loss(F.mse_loss), target=torch.randn(8, 3))


def contrastive(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output @ output.t(), torch.arange(len(output)), reduction="sum")


def test_a_loss_that_compares_samples_is_taken() -> None:
    assert run(Loss(contrastive)) == contrastive(OUTPUT, TARGET)


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (lambda output, target: output.sum(1), r"a tensor of shape \(8,\)"),
        (lambda output, target: 1.5, "float"),
        (lambda output, target: None, "NoneType"),
        (lambda output, target: {"loss": output.sum()}, "dict"),
    ],
)
def test_anything_but_one_number_is_refused(returned: Any, words: str) -> None:
    with pytest.raises(UserError, match=f"the loss returned {words}: it must return the sum"):
        run(Loss(returned))


def test_it_may_write_into_output_and_target() -> None:
    def writes(output: Tensor, target: Tensor) -> Tensor:
        output[:, 0] = -1e3
        target[target == 0] = -100
        return F.cross_entropy(output, target, reduction="sum", ignore_index=-100)

    kept = OUTPUT.clone(), TARGET.clone()
    loss = LossForward(Loss(writes), CPU, Randomness(0))
    losses = {loss.run(i, OUTPUT.detach().requires_grad_(), TARGET).item() for i in range(4)}
    assert losses == {writes(OUTPUT.clone(), TARGET.clone()).item()}
    assert torch.equal(OUTPUT, kept[0])
    assert torch.equal(TARGET, kept[1])


def test_it_is_seeded() -> None:
    loss = LossForward(Loss(lambda x, y: (x * torch.rand(())).sum() * np.random.rand()), CPU, Randomness(0))
    x = torch.ones(1, 1)
    assert loss.run(0, x, x) == loss.run(0, x, x)
    assert loss.run(0, x, x) != loss.run(1, x, x)


class CountsCalls(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def count(self, target: Tensor) -> int:
        return len(target)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        self.calls += 1
        return output.sum()


def test_the_check_leaves_no_trace_in_the_loss() -> None:
    loss = CountsCalls()
    run(loss)
    assert loss.calls == 1


@pytest.mark.parametrize("count", [3, 2.5, np.int64(3), np.float32(0.5), torch.tensor(4), torch.ones(1)])
def test_counts(count: Any) -> None:
    assert count_of(Loss(cross_entropy, lambda _: count), [TARGET, TARGET]) == 2 * float(count)


@pytest.mark.parametrize("count", [-1, float("nan"), "many", None, torch.ones(2)])
def test_what_is_no_count_is_refused(count: Any) -> None:
    with pytest.raises(UserError, match="the loss's count returned"):
        count_of(Loss(cross_entropy, lambda _: count), [TARGET])


class Uncertain(nn.Module):
    """Squares under a precision that is learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.log_precision = nn.Parameter(torch.zeros(()))

    def count(self, target: Tensor) -> int:
        return len(target)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return (self.log_precision.exp() * (output - target) ** 2 - self.log_precision).sum()


class Noting(Replication):
    """Notes gradients as they are when their layer counts as complete."""

    def __init__(self) -> None:
        self.complete: dict[str, Tensor] = {}

    def start(self, layer: BuiltLayer) -> None:
        self.complete[layer.name] = gradients_of(layer)[0].clone()


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe", "zb_h1", "zb_v"])
def test_a_loss_with_parameters_gets_its_gradient_before_the_average(schedule: str) -> None:
    inputs = [torch.randn(4, 3) for _ in range(5)]
    torch.manual_seed(0)
    layers = tuple(Layer(f"layer.{i}", lambda: nn.Linear(3, 3)) for i in range(4))
    loss, averaging = Uncertain(), Noting()
    of = Pipeline(Model(layers, loss), [1, 1, 1, 1], schedule, averaging)
    of.train(Given(inputs, inputs), 5)
    plain = Pipeline(Model(layers, Uncertain()), [1, 1, 1, 1], schedule)
    total = Uncertain()
    for x in inputs:
        y = x
        for layer in plain.layers[:4]:
            y = layer.module(y)
        total(y, x).backward()
    assert loss.log_precision.grad is not None
    assert torch.equal(loss.log_precision.grad, total.log_precision.grad)  # type: ignore[arg-type]
    assert averaging.complete["loss"] == loss.log_precision.grad
