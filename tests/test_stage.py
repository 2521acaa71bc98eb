"""A stage's forward and backward match plain autograd's, bit for bit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer.activation import TreeSpec, flatten, unflatten
from trainer.errors import UserError, notes
from trainer.models.simplenet import BinaryLoss
from trainer.pipeline.layer import BuiltLayer
from trainer.pipeline.randomness import Randomness
from trainer.pipeline.stage import Stage

CPU = torch.device("cpu")


def build(*modules: nn.Module, loss: Any = None, on_layer_done: Callable[[], None] = lambda: None) -> Stage:
    layers = [BuiltLayer(i, f"layer{i}", module) for i, module in enumerate(modules)]
    return Stage(0, layers, CPU, loss=loss, randomness=Randomness(0), on_layer_done=on_layer_done)


def network() -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Linear(4, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 3)]


def gradients(modules: list[nn.Module]) -> list[Tensor]:
    return [parameter.grad for module in modules for parameter in module.parameters()]


def assert_equal(these: list[Tensor], those: list[Tensor]) -> None:
    assert len(these) == len(those)
    assert all(torch.equal(this, that) for this, that in zip(these, those, strict=True))


class Function(nn.Module):
    """A layer without parameters."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self._function = function

    def forward(self, activation: Any) -> Any:
        return self._function(activation)


def test_one_micro_batch() -> None:
    mine, plain = network(), network()
    x = torch.randn(5, 4, requires_grad=True)
    incoming = torch.randn(5, 3)
    stage = build(*mine)
    (output,), nest = stage.forward(0, [x.detach().requires_grad_()], 0)
    assert nest == 0
    (gradient,) = stage.backward(0, [incoming])
    expected = nn.Sequential(*plain)(x)
    expected.backward(incoming)
    assert torch.equal(output, expected)
    assert torch.equal(gradient, x.grad)
    assert_equal(gradients(mine), gradients(plain))


def test_several_micro_batches_add_up_in_the_order_of_their_backwards() -> None:
    mine, plain = network(), network()
    inputs = [torch.randn(size, 4) for size in (3, 3, 1)]
    incoming = [torch.randn(size, 3) for size in (3, 3, 1)]
    stage = build(*mine)
    for i, x in enumerate(inputs):
        stage.forward(i, [x], 0)
    for i, gradient in enumerate(incoming):
        assert stage.backward(i, [gradient]) == []  # the data needs no gradient
    for x, gradient in zip(inputs, incoming, strict=True):
        nn.Sequential(*plain)(x).backward(gradient)
    assert_equal(gradients(mine), gradients(plain))


def test_loss() -> None:
    mine, plain = [*network(), nn.Linear(3, 1)], [*network(), nn.Linear(3, 1)]
    plain[-1].load_state_dict(mine[-1].state_dict())
    x, target = torch.randn(6, 4), torch.tensor([0.0, 1, 1, 0, 1, 0])
    stage = build(*mine, loss=BinaryLoss())
    tensors, nest = stage.forward(0, [x], 0)
    total = stage.loss_sum(0, unflatten(tensors, nest), target)
    stage.backward(0, [torch.tensor(1 / 6)])
    logits = nn.Sequential(*plain)(x).squeeze(1)
    expected = nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="sum")
    (expected * torch.tensor(1 / 6)).backward()
    assert torch.equal(total, expected)
    assert not total.requires_grad
    assert_equal(gradients(mine), gradients(plain))


def split_nest(activation: Any) -> tuple[list[Tensor], TreeSpec]:
    tensors, nest = flatten(activation)
    return [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in tensors], nest


def test_nested_with_a_skip_a_mask_and_an_unused_output() -> None:
    torch.manual_seed(1)
    linear = nn.Linear(4, 4)

    def branch(x: Tensor) -> dict[str, Any]:
        return {"x": linear(x), "skip": x, "mask": x > 0, "none": None, "unused": x * 2}

    def join(parts: dict[str, Any]) -> tuple[Tensor, Tensor]:
        assert parts["none"] is None
        return (parts["x"] + parts["skip"]).masked_fill(parts["mask"], 0.0), parts["unused"]

    first = Function(branch)
    first.linear = linear  # registered as a submodule
    stage = build(first, Function(join), Function(lambda pair: pair[0]))
    x = torch.randn(3, 4, requires_grad=True)
    incoming = torch.randn(3, 4)
    (output,), _ = stage.forward(0, *split_nest(x))
    (gradient,) = stage.backward(0, [incoming])
    mine = linear.weight.grad.clone()
    linear.zero_grad()
    expected = join(branch(x))[0]
    expected.backward(incoming)
    assert torch.equal(output, expected)
    torch.testing.assert_close(gradient, x.grad)
    assert torch.equal(mine, linear.weight.grad)


def test_layer_outputs_are_contiguous() -> None:
    stage = build(Function(lambda x: x.transpose(0, 1)))
    (output,), _ = stage.forward(0, [torch.randn(2, 3, requires_grad=True)], 0)
    assert output.is_contiguous()
    incoming = torch.randn(3, 2)
    (gradient,) = stage.backward(0, [incoming])
    assert torch.equal(gradient, incoming.t())


def test_layers_are_complete_from_the_last_to_the_first() -> None:
    stage = build(*network())
    stage.forward(0, [torch.randn(5, 4)], 0)
    complete: list[str] = []

    def note(layer: BuiltLayer) -> None:
        assert all(parameter.grad is not None for parameter in layer.module.parameters())
        complete.append(layer.name)

    stage.backward(0, [torch.randn(5, 3)], note)
    assert complete == ["layer3", "layer2", "layer1", "layer0"]


def test_frozen_layers() -> None:
    mine = network()
    mine[3].requires_grad_(False)
    mine[0].requires_grad_(False)
    stage = build(*mine)
    stage.forward(0, [torch.randn(5, 4)], 0)
    assert stage.backward(0, [torch.randn(5, 3)]) == []
    assert [parameter.grad is None for parameter in mine[0].parameters()] == [True, True]
    assert [parameter.grad is None for parameter in mine[2].parameters()] == [False, False]
    assert [parameter.grad is None for parameter in mine[3].parameters()] == [True, True]


def test_messages_progress_after_every_layer() -> None:
    calls: list[None] = []
    stage = build(*network(), on_layer_done=lambda: calls.append(None))
    stage.forward(0, [torch.randn(5, 4)], 0)
    assert len(calls) == 4
    stage.backward(0, [torch.randn(5, 3)])
    assert len(calls) == 8


def test_dropout_depends_only_on_step_and_micro_batch() -> None:
    modules = [nn.Dropout(0.5), nn.Linear(64, 64), nn.Dropout(0.5)]
    whole, second = build(*modules), build(*modules)
    x = torch.ones(4, 64)
    outputs = {i: whole.forward(i, [x], 0)[0][0] for i in (0, 1, 2)}
    again = {i: second.forward(i, [x], 0)[0][0] for i in (2, 0)}
    assert torch.equal(outputs[0], again[0])
    assert torch.equal(outputs[2], again[2])
    assert not torch.equal(outputs[0], outputs[1])


def test_inference_has_no_dropout_and_saves_nothing() -> None:
    stage = build(nn.Linear(4, 4), nn.Dropout(0.5))
    stage.train(False)
    x = torch.randn(3, 4)
    with torch.no_grad():
        (output,), _ = stage.forward(0, [x], 0)
        assert torch.equal(output, stage.layers[0].module(x))
    assert not output.requires_grad
    assert stage._tapes == {}


def test_layers_that_modify_their_input() -> None:
    mine = [nn.Linear(4, 8), nn.Sequential(nn.ReLU(inplace=True), nn.Linear(8, 8)), nn.Linear(8, 3)]
    torch.manual_seed(0)
    x = torch.randn(5, 4)
    stage = build(*mine)
    (output,), _ = stage.forward(0, [x], 0)
    stage.backward(0, [torch.ones(5, 3)])
    found = gradients(mine)
    for module in mine:
        module.zero_grad()
    expected = nn.Sequential(*mine)(x)
    expected.sum().backward()
    assert torch.equal(output, expected)
    assert_equal(found, gradients(mine))


class Clamped(nn.Linear):
    """Clamps its weights before it uses them."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.weight.clamp_(-0.1, 0.1)
        return super().forward(x)


def test_a_forward_that_changes_weights_which_a_backward_needs() -> None:
    stage = build(nn.Linear(4, 8), Clamped(8, 3))
    for micro_batch in range(2):
        stage.forward(micro_batch, [torch.ones(5, 4)], 0)
    with pytest.raises(UserError, match="layer 'layer1' changes its weights in its forward"):
        stage.backward(0, [torch.ones(5, 3)])


class Undifferentiable(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_: Any, _gradient: Tensor) -> Tensor:
        raise RuntimeError("no gradient")


def test_an_error_in_a_backward_names_the_layer() -> None:
    stage = build(nn.Linear(4, 4), Function(Undifferentiable.apply), nn.Linear(4, 4))
    stage.forward(0, [torch.ones(5, 4)], 0)
    with pytest.raises(RuntimeError, match="no gradient") as caught:
        stage.backward(0, [torch.ones(5, 4)])
    assert "in the backward of layer 'layer1'" in notes(caught.value)
