"""Recurrent layers against torch's own, and their weight gradients in split backwards."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tests.support.models import NoLoss
from trainer.models.deferring import Deferred
from trainer.models.model import Layer, Model
from trainer.models.recurrent import Recurrent
from trainer.pipeline.weight_gradients import Deferral, add_weight_gradients
from trainer.plan.costs import layer_costs

LENGTHS = torch.tensor([7, 3, 5])
IN_LENGTH = (torch.arange(7) < LENGTHS[:, None])[..., None]
KINDS = {"lstm": nn.LSTM, "gru": nn.GRU}
CASES = [pytest.param(cell, both, id=f"{cell}, {1 + both}") for cell in KINDS for both in (False, True)]


def layer(cell: str, both: bool, inputs: int = 4) -> Recurrent:
    torch.manual_seed(0)
    return Recurrent(cell, inputs, 5, bidirectional=both)


def sequences() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(3, 7, 4)


@pytest.mark.parametrize(("cell", "both"), CASES)
def test_equal_to_torch(cell: str, both: bool) -> None:
    ours = layer(cell, both).double()
    theirs = KINDS[cell](4, 5, batch_first=True, bidirectional=both).double()
    theirs.load_state_dict(ours.state_dict())  # the same names and shapes
    assert list(theirs.state_dict()) == list(ours.state_dict())
    x = sequences().double().requires_grad_()
    y = sequences().double().requires_grad_()
    packed = pack_padded_sequence(y, LENGTHS, batch_first=True, enforce_sorted=False)
    wanted = pad_packed_sequence(theirs(packed)[0], batch_first=True)[0]
    output = ours(x, LENGTHS) * IN_LENGTH
    torch.testing.assert_close(output, wanted)
    gradient = torch.randn_like(wanted)
    output.backward(gradient)
    wanted.backward(gradient)
    torch.testing.assert_close(x.grad, y.grad)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


@pytest.mark.parametrize(("cell", "both"), CASES)
def test_padding_changes_nothing(cell: str, both: bool) -> None:
    """Neither what lies in it, nor how much of it there is."""
    module, x = layer(cell, both), sequences()
    output = module(x, LENGTHS)
    noisy = torch.where(IN_LENGTH, x, 1e3)
    assert torch.equal(module(noisy, LENGTHS) * IN_LENGTH, output * IN_LENGTH)
    alone = module(x[1:2, :3], LENGTHS[1:2])
    torch.testing.assert_close(alone, output[1:2, :3])


@pytest.mark.parametrize(("cell", "half"), [("lstm", False), ("gru", False), ("gru", True)])
@pytest.mark.parametrize("both", [False, True])
def test_torchs_kernels_compute_the_same(cell: str, both: bool, half: bool) -> None:
    """Not an LSTM in bfloat16, for which oneDNN has no kernel on every CPU."""
    ours, theirs = layer(cell, both), layer(cell, both)
    theirs.fused = True
    gradient = sequences()[..., :1]
    for module in (ours, theirs):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            output = module(sequences(), LENGTHS)
        output.float().backward((gradient * IN_LENGTH).expand_as(output))
    tolerance = 0.05 if half else 1e-5
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, atol=tolerance, rtol=tolerance)


def autocast() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(("cell", "both"), CASES)
def test_a_split_backward_defers_all_weights_and_has_the_bits_of_a_whole_one(
    cell: str, both: bool, half: bool
) -> None:
    def run(module: Recurrent, backward: Callable[[Tensor, Tensor], None]) -> Tensor:
        x = sequences().requires_grad_()
        for seed, lengths in enumerate([LENGTHS, LENGTHS.flip(0)]):  # micro-batches
            torch.manual_seed(seed)
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                output = module(x, lengths)
            backward(output, torch.randn_like(output))
        assert x.grad is not None
        return x.grad

    whole, split = layer(cell, both), layer(cell, both)
    wanted = run(whole, lambda output, gradient: output.backward(gradient))
    deferral, later = Deferral([split]), list[Deferred]()

    def first_part(output: Tensor, gradient: Tensor) -> None:
        later.append([])
        deferral.backward([output], [gradient], later[-1])

    assert torch.equal(run(split, first_part), wanted)
    assert all(parameter.grad is None for parameter in split.parameters())
    for deferred in later:
        add_weight_gradients(deferred)
    for mine, other in zip(split.parameters(), whole.parameters(), strict=True):
        assert mine.grad is not None
        assert torch.equal(mine.grad, other.grad)


def test_half_precision_keeps_states_in_full_precision() -> None:
    module, x = layer("gru", both=True), sequences()
    with autocast():
        output = module(x, LENGTHS)
    assert output.dtype is torch.float32
    torch.testing.assert_close(output, module(x, LENGTHS), atol=0.02, rtol=0)
    assert not torch.equal(output, module(x, LENGTHS))


def test_frozen_weights_get_no_gradient() -> None:
    module = layer("lstm", both=False)
    module.get_parameter("weight_hh_l0").requires_grad_(False)
    deferred: Deferred = []
    output = module(sequences(), LENGTHS)
    Deferral([module]).backward([output], [torch.ones_like(output)], deferred)
    add_weight_gradients(deferred)
    with_gradient = {name for name, parameter in module.named_parameters() if parameter.grad is not None}
    assert with_gradient == {"weight_ih_l0", "bias_ih_l0", "bias_hh_l0"}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("cell", KINDS)
def test_torchs_own_layers_have_the_same_bits_in_both(cell: str, packed: bool) -> None:
    """What can be deferred depends on the kernels that torch chooses: oneDNN's LSTM computes all at once."""
    torch.manual_seed(0)
    module = KINDS[cell](4, 5, batch_first=True, bidirectional=True)
    x = sequences().requires_grad_()
    given = pack_padded_sequence(x, LENGTHS, batch_first=True, enforce_sorted=False) if packed else x
    output = module(given)[0]
    output = output.data if packed else output
    gradient = torch.randn_like(output)
    wanted = torch.autograd.grad(output, list(module.parameters()), gradient, retain_graph=True)
    deferred: Deferred = []
    Deferral([module]).backward([output], [gradient], deferred)
    waits = {name for name, parameter in module.named_parameters() if parameter.grad is None}
    if packed or cell == "gru":
        assert waits >= {"weight_ih_l0", "weight_hh_l0", "weight_ih_l0_reverse", "weight_hh_l0_reverse"}
    add_weight_gradients(deferred)
    for parameter, other in zip(module.parameters(), wanted, strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, other)


@pytest.mark.parametrize(("cell", "both"), CASES)
def test_the_meta_device_sees_the_same_shapes(cell: str, both: bool) -> None:
    """Where one step stands for all."""

    def shapes(device: str) -> list[torch.Size]:
        module = layer(cell, both).to(device)
        x = sequences().to(device).requires_grad_()
        seen: list[torch.Size] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t.shape) or t, lambda t: t):
            output = module(x, LENGTHS.to(device))
        output.backward(torch.empty_like(output))
        assert x.grad is not None
        gradients = [parameter.grad.shape for parameter in module.parameters() if parameter.grad is not None]
        return [*seen, output.shape, x.grad.shape, *gradients]

    assert shapes("meta") == shapes("cpu")


@pytest.mark.parametrize(("cell", "both"), CASES)
def test_operations_counted_by_hand(cell: str, both: bool) -> None:
    batch, time, inputs, width = 3, 7, 4, 5
    layers = (Layer("recurrent", lambda: OfPair(layer(cell, both))),)
    (cost,) = layer_costs(Model(layers, NoLoss()), (sequences(), LENGTHS))
    gates = width * {"lstm": 4, "gru": 3}[cell]
    forward = 2 * (1 + both) * batch * time * gates * (inputs + width)
    assert cost.flops_forward == forward
    # The inputs need no gradient, so of the inputs' weights there is one product, and of the states' two.
    of_inputs = 2 * (1 + both) * batch * time * gates * inputs
    assert cost.flops_backward == 2 * forward - of_inputs
    assert cost.deferred == cost.trained
    assert cost.warning is None


class OfPair(nn.Module):
    """A recurrent layer of a sequence and its lengths."""

    def __init__(self, recurrent: Recurrent) -> None:
        super().__init__()
        self.recurrent = recurrent

    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        output: Tensor = self.recurrent(*pair)
        return output
