"""A model that is cut computes what it computed whole, to the bit: its outputs and every gradient."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.fixtures.networks import Biased, Recurrent, Tokens, UNet, Unused, data, residual
from tests.support.cutting import backward, built, forward, gradient_of, whole, without_dropout
from tests.support.models import NoLoss
from trainer.cut.answers import Call, call
from trainer.cut.blocks import find_blocks
from trainer.cut.model import cut
from trainer.cut.parts import tensors
from trainer.cut.weights import RecordedWeights
from trainer.data.dataset import as_tensors
from trainer.errors import UserError
from trainer.models.model import Model
from trainer.plan.costs import layer_costs
from trainer.plan.crossing import crossing_lines
from trainer.plan.stages import partition_model

TWO = np.arange(2)


def cut_at(make: Callable[[], nn.Module], names: Sequence[str], inputs: Any, calls: Call = call) -> Model:
    weights = RecordedWeights(make)
    return cut(weights, find_blocks(weights.skeleton, names, "model.blocks"), inputs, NoLoss(), calls)


@dataclass(frozen=True)
class Case:
    make: Callable[[], nn.Module]
    blocks: Sequence[str]
    kind: str
    result: Callable[[Any], Any] = lambda output: output
    rounds: bool = False  # three gradients of one tensor are added in another order

    @property
    def inputs(self) -> Any:
        return as_tensors(data(self.kind).training.inputs(TWO))

    def cut(self) -> Model:
        calls = partial(_called, result=self.result)
        return cut_at(self.make, self.blocks, self.inputs, calls)


def _called(model: nn.Module, inputs: Any, *, result: Callable[[Any], Any]) -> Any:
    return result(call(model, inputs))


def logits(output: Any) -> Any:
    return output["logits"]


CASES = {
    "residual": Case(residual, ["layer1", "layer2", "layer3"], "digits"),
    "skips": Case(UNet, ["down", "middle", "up"], "images"),
    "inner parts": Case(UNet, ["down.0.conv1", "down.1", "middle.conv2", "up"], "images", rounds=True),
    "between blocks": Case(lambda: Recurrent(dropout=0.0), ["rnns"], "frames"),
    "ties": Case(Tokens, ["blocks"], "tokens", logits),
    "an unused part": Case(Unused, ["blocks"], "frames"),
    "a mask": Case(Tokens, ["blocks"], "masked", logits),
    "one argument for all blocks": Case(Biased, ["blocks"], "frames"),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def test_outputs_and_gradients(case: Case) -> None:
    layers = built(case.cut())
    model = whole(case.make, layers)
    without_dropout(model, *(layer.module for layer in layers))
    expected = case.result(call(model, case.inputs))
    gradient = torch.randn_like(expected)
    expected.backward(gradient)
    for _ in range(2):  # the second time, blocks may be called alone
        for layer in layers:
            layer.module.zero_grad()
        output, tape = forward(layers, case.inputs)
        assert torch.equal(output, expected)
        backward(tape, gradient)
        equal = partial(torch.allclose, rtol=1e-4, atol=1e-4) if case.rounds else torch.equal
        for name, parameter in model.named_parameters():
            if parameter.grad is None:
                assert name.startswith("unused")
            else:
                assert equal(gradient_of(name, layers), parameter.grad), name


def test_only_what_a_layer_needs_has_memory(case: Case) -> None:
    model = case.make()
    layers = built(case.cut())
    owned = {name for layer in layers for name, _ in layer.owned()}
    assert owned == {name for name, _ in model.named_parameters()}
    for layer in layers:
        held = {id(tensor) for _, tensor in layer.module.named_parameters()}
        unneeded = [p for p in layer.module.part.model.parameters() if id(p) not in held]
        assert all(p.is_meta or p.untyped_storage().nbytes() <= 8 for p in unneeded)  # stand-ins are a number


@pytest.mark.parametrize("name", CASES)
def test_weights_are_those_of_the_constructors(name: str) -> None:
    """Drawn one after another under one seed, they have the bits of the model that is built whole."""
    make = CASES[name].make
    recorded = RecordedWeights(make)
    torch.manual_seed(5)
    values = recorded.values([path for path, _ in tensors(recorded.skeleton)])
    torch.manual_seed(5)
    for path, tensor in tensors(make()):
        assert torch.equal(values[path], tensor), path


class Initialised(nn.Module):
    """Constructors that do more than fill a fresh tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 5)
        self.linear.bias.data = F.pad(torch.ones(3), (1, 1))
        self.register_buffer("table", torch.arange(6.0).outer(torch.tensor([1.0, 2.0])), persistent=False)
        self.drawn = nn.Parameter(torch.from_numpy(np.random.RandomState(0).randn(3)))
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
        self.plain = torch.full((2,), 3.0)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)  # last: torch may draw more than once
        self.linear.weight.data.mul_(0.5)
        with torch.no_grad():
            self.linear.weight[2].zero_()
            self.linear.weight[:, 1] += 1.0


def test_unusual_constructors() -> None:
    recorded = RecordedWeights(Initialised)
    assert all(tensor.is_meta for path, tensor in tensors(recorded.skeleton) if path != "drawn")
    torch.manual_seed(5)
    values = recorded.values([path for path, _ in tensors(recorded.skeleton)])
    torch.manual_seed(5)
    for path, tensor in tensors(Initialised()):
        if path == "linear.weight":  # drawn from the same distribution
            assert 0.002 < values[path][3, 2:].std() < 0.02
            assert not values[path][2, 2:].any()
        else:
            assert torch.equal(values[path], tensor), path
    some = recorded.values(["linear.bias", "table"])
    assert sorted(some) == ["linear.bias", "table"]


def test_what_crosses() -> None:
    crossing = built(CASES["skips"].cut())[0].module.part.cuts.crossing
    assert [[str(source) for source in each.sources] for each in crossing] == [
        [],
        ["block.0.0"],
        ["block.0.0", "block.1.0"],
        ["block.0.0"],
        [],
    ]
    masked = built(CASES["a mask"].cut())[0].module.part.cuts.crossing
    assert [each.inputs for each in masked] == [(0, 1), (0, 1), (0, 1)] or all(1 in e.inputs for e in masked)


def test_a_block_is_called_alone_where_nothing_is_around_it() -> None:
    def alone(name: str) -> list[bool]:
        layers = built(CASES[name].cut())
        forward(layers, CASES[name].inputs)
        return [any(layer.module._direct.values()) for layer in layers[1:-1]]

    assert all(alone("residual"))
    assert all(alone("ties"))
    assert not any(alone("between blocks"))
    assert not any(alone("a mask"))
    assert all(alone("one argument for all blocks"))


def test_an_argument_of_several_blocks_crosses_once() -> None:
    crossing = built(CASES["one argument for all blocks"].cut())[0].module.part.cuts.crossing
    names = [[str(source) for source in (*each.arguments, *each.sources)] for each in crossing]
    assert names == [
        ["argument.0.0", "argument.0.1"],
        ["argument.0.1", "argument.1.0"],
        ["argument.0.1", "argument.2.0"],
    ]


def test_shapes_of_many_inputs_are_forgotten() -> None:
    layers = built(CASES["ties"].cut())
    model = whole(CASES["ties"].make, layers)
    without_dropout(model, *(layer.module for layer in layers))
    for _ in range(2):
        for size in range(1, 40):
            tokens = torch.arange(6).expand(size, -1)
            with torch.no_grad():
                assert torch.equal(forward(layers, tokens)[0], logits(model(tokens)))
    for layer in layers:
        assert len(layer.module.part._shapes) <= 16 * 5


def test_what_a_user_should_know() -> None:
    assert not CASES["residual"].cut().notes
    (note,) = CASES["between blocks"].cut().notes
    assert note.startswith("what crosses a cut grows by 1 tensor a block")
    (note,) = CASES["an unused part"].cut().notes
    assert note.startswith("no forward reads unused_scale, unused.weight, unused.bias: kept")


def test_lines_of_the_table() -> None:
    case = CASES["ties"]
    model = case.cut()
    costs = layer_costs(model, case.inputs)
    assert list(crossing_lines(model, partition_model(costs, [1, 2], range(3)), len(TWO))) == [
        "  crosses 0|1 .. 1|2: the block's input, float32 [2, 6, 8] (192 B a sample)",
        "  shared: positions on stages 0 and 2, which add up its gradients",
        "  shared: embedding.weight = project.weight on stages 0 and 2, which add up its gradients",
    ]
    model = CASES["skips"].cut()
    partition = partition_model(layer_costs(model, CASES["skips"].inputs), [3], range(2))
    (line,) = crossing_lines(model, partition, len(TWO))
    assert "the block's input, float32 [2, 16, 4, 4]; output 0 of down.0, float32 [2, 8, 16, 16]" in line


class Wrong(nn.Module):
    """Forwards that cannot be cut, by name."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.blocks = nn.ModuleList([nn.Linear(6, 6) for _ in range(3)])
        self.head = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        order = {"again": (0, 1, 0), "order": (1, 0, 2), "skipped": (0, 1)}.get(self.how, (0, 1, 2))
        if self.how == "evaluation" and self.training:
            x = self.head(x)
        kept = F.dropout(x, 0.5) if self.how == "random" else x
        for index in order:
            if self.how == "value" and x.sum() > 0:
                x = -x
            x = self.blocks[index](x)
        return x + self.blocks[2](kept) if self.how == "later" else x + kept


REFUSED = {
    "again": "blocks.0 is called again after blocks.1",
    "order": "blocks.1 is called before blocks.0: name the blocks in the order of their calls",
    "skipped": "blocks.2 is never called",
    "later": "blocks.2 is called again after blocks.2",
    "value": "does not run without numbers (test_cut.py:",
    "evaluation": "calls other modules, or in another order, in evaluation than in training",
    "random": "random numbers that the forward draws between blocks are read again after blocks.2",
}


@pytest.mark.parametrize("how", REFUSED)
def test_refusals(how: str) -> None:
    with pytest.raises(UserError, match=re.escape(REFUSED[how])) as caught:
        cut_at(lambda: Wrong(how), ["blocks"], torch.randn(2, 6))
    assert "\n" not in str(caught.value)


class Boxed:
    """What torch does not see into."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class Hiding(nn.Module):
    """A block that hands something on without returning it, by name."""

    def __init__(self, how: str, before: "Hiding | None") -> None:
        super().__init__()
        self.how = how
        self.before = [before] if how == "block" and before is not None else []
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Any:
        for before in self.before:
            x = x + before.hidden
        self.hidden = self.linear(x) * 2
        return Boxed(self.hidden) if self.how == "object" else self.hidden / 2


class Hides(nn.Module):
    """A model whose blocks hide what is read later."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.blocks = nn.ModuleList()
        for _ in range(3):
            last = self.blocks[-1] if len(self.blocks) else None
            self.blocks.append(Hiding(how, last if isinstance(last, Hiding) else None))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            output = block(x)
            x = output.tensor if isinstance(output, Boxed) else output
        return x + self.blocks[0].hidden if self.how == "attribute" else x  # type: ignore[operator]


@pytest.mark.parametrize(
    ("how", "reader"),
    [
        ("object", "what the forward does outside of model.blocks"),
        ("attribute", "what the forward does outside of model.blocks"),
        ("block", "blocks.1"),
    ],
)
def test_hidden_tensors_are_refused(how: str, reader: str) -> None:
    with pytest.raises(UserError, match=f"^{reader} reads a tensor that blocks.0 made but did not return"):
        cut_at(lambda: Hides(how), ["blocks"], torch.randn(2, 6))


def test_what_only_a_block_reads_may_be_hidden() -> None:
    model = cut_at(lambda: Hides("none"), ["blocks"], torch.randn(2, 6))
    assert [layer.name for layer in model.layers] == ["first", "blocks.0", "blocks.1", "blocks.2"]


NAMES = {
    "blokcs": "model.blocks=blokcs: the model has no such part; did you mean blocks?; it has blocks",
    "": "model.blocks is empty: name the parts to cut between; it has blocks",
}


@pytest.mark.parametrize("name", NAMES)
def test_parts_that_are_not_there(name: str) -> None:
    with pytest.raises(UserError, match=re.escape(NAMES[name])):
        cut_at(lambda: Wrong(""), [name] if name else [], torch.randn(2, 6))


def test_inputs_that_do_not_fit() -> None:
    words = (
        r"the model's forward fails with the data's inputs, of shape \(2, 5\): test_cut.py:\d+: RuntimeError"
    )
    with pytest.raises(UserError, match=words):
        cut_at(lambda: Wrong(""), ["blocks"], torch.randn(2, 5))


def test_parts_within_parts() -> None:
    with pytest.raises(UserError, match=re.escape("down.0.conv1 is a part of down.0, which is a block too")):
        cut_at(UNet, ["down", "down.0.conv1"], CASES["skips"].inputs)
    with pytest.raises(UserError, match="names middle twice"):
        cut_at(UNet, ["middle", "middle"], CASES["skips"].inputs)


def test_batches_of_other_sizes_and_evaluation() -> None:
    case = CASES["a mask"]
    layers = built(case.cut())
    model = whole(case.make, layers)
    for mode in (False, True):
        without_dropout(model.train(mode), *(layer.module.train(mode) for layer in layers))
        for size, length in ((1, 6), (3, 4), (2, 6)):
            read = as_tensors(data("masked").training.inputs(np.arange(size)))
            inputs = {name: tensor[:, :length] for name, tensor in read.items()}
            with torch.no_grad():
                assert torch.equal(forward(layers, inputs)[0], logits(model(**inputs)))


def test_what_has_values_already_is_copied() -> None:
    """Weights that the target has read from a file, or a module that it returns each time."""
    existing = residual()
    before = {name: tensor.clone() for name, tensor in existing.state_dict().items()}
    layers = built(cut_at(lambda: existing, ["layer1", "layer2", "layer3"], CASES["residual"].inputs))
    with torch.no_grad():
        for layer in layers:
            for name, parameter in layer.module.named_parameters():
                assert torch.equal(parameter, before[name])
                parameter.zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in existing.state_dict().items())


def loaded() -> nn.Module:
    model = residual()
    state = {name: torch.full_like(tensor, 2, device="cpu") for name, tensor in model.state_dict().items()}
    model.load_state_dict(state)
    return model


def test_weights_that_the_target_loads() -> None:
    layers = built(cut_at(loaded, ["layer1", "layer2", "layer3"], CASES["residual"].inputs))
    assert all((tensor == 2).all() for layer in layers for tensor in layer.module.state_dict().values())


def test_unused_parameters_are_kept_and_do_not_train() -> None:
    first, *_ = built(CASES["an unused part"].cut())
    unused = {n: p for n, p in first.module.named_parameters() if n.startswith("unused")}
    assert sorted(unused) == ["unused.bias", "unused.weight", "unused_scale"]
    assert not any(parameter.requires_grad for parameter in unused.values())
