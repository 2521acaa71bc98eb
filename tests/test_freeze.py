"""Frozen parameters: which ones a pattern matches, their costs, and the gradients of the others."""

import fnmatch
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from tests.support.one_process import CPU, Given, Pipeline, share
from trainer.activation import Activation
from trainer.config.schema import GPTConfig
from trainer.data.dataset import Data
from trainer.errors import UserError
from trainer.models.freeze import freeze
from trainer.models.gpt import gpt
from trainer.models.model import Layer, Model, Tie
from trainer.models.names import Parameters, choose_layers, chooses
from trainer.pipeline.build import build_layer
from trainer.plan.costs import layer_costs
from trainer.plan.stages import partition_model


class Tokens:
    """Only a shape, as a GPT needs it before it is built."""

    def inputs(self, samples: object) -> Tensor:
        return torch.zeros(1, 8, dtype=torch.int64)


GPT = gpt(
    GPTConfig(blocks=3, width=16, heads=2, context=8, dropout=0.1),
    Data(Tokens(), Tokens(), "", vocabulary=11),
)
WEIGHT = "linear.weight"  # of the head, tied to the embedding's


class Sum:
    """The sum of the output."""

    def count(self, target: Activation) -> int:
        return 1

    def __call__(self, output: Activation, target: Activation) -> Tensor:
        assert isinstance(output, Tensor)
        return output.sum()


def linears(*builds: Callable[[], nn.Module]) -> Model:
    return Model(tuple(Layer(f"layer{i}", build) for i, build in enumerate(builds)), Sum())


def parameters(model: Model) -> dict[str, nn.Parameter]:
    """Return all parameters by name, uses of tied ones too, each layer built on its own."""
    return {
        f"{layer.name}/{name}": parameter
        for i, layer in enumerate(model.layers)
        for name, parameter in build_layer(model.layers, i, 3, CPU).module.named_parameters()
    }


def frozen(model: Model) -> set[str]:
    return {name for name, parameter in parameters(model).items() if not parameter.requires_grad}


ALL = set(parameters(GPT))
HEAD = {"head/norm.weight", "head/norm.bias"}


def of(*layers: str) -> set[str]:
    return {name for name in ALL if name.split("/")[0] in layers}


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ([], set()),
        (["block.1"], of("block.1")),
        (["block.1/*"], of("block.1")),
        (["block.*"], of("block.0", "block.1", "block.2")),
        (["block.[02]"], of("block.0", "block.2")),
        (
            ["block.?/widen.*", "head"],
            {f"block.{i}/widen.{n}" for i in range(3) for n in ("weight", "bias")} | HEAD,
        ),
        (["*/*bias"], {name for name in ALL if name.endswith("bias")}),
        (["head"], HEAD),  # its weight belongs to the embedding
        (["embedding"], of("embedding") | {f"head/{WEIGHT}"}),
        (["embedding/tokens.weight"], {"embedding/tokens.weight", f"head/{WEIGHT}"}),
        (["embedding/positions*"], {"embedding/positions.weight"}),
        (["[!h]*"], ALL - HEAD),
    ],
)
def test_patterns(patterns: list[str], expected: set[str]) -> None:
    assert frozen(freeze(GPT, patterns)) == expected


@pytest.mark.parametrize(
    ("pattern", "layer", "parameter", "expected"),
    [
        ("a", "a", "weight", True),
        ("a", "A", "weight", False),
        ("a", "ab", "weight", False),
        ("a*", "ab", "weight", True),
        ("a/w*", "a", "weight", True),
        ("a/w", "a", "weight", False),
        ("*/bias", "a", "b.bias", False),
        ("*bias", "a", "bias", False),  # without a slash it matches layers
        ("a/", "a", "weight", True),
        ("b.weigh*", "a", "b.weight", True),  # whatever the layer
        ("b.*", "a", "c.weight", False),
        ("b*.weight", "a", "b.weight", False),
    ],
)
def test_a_pattern_has_a_layer_part_and_a_parameter_part(
    pattern: str, layer: str, parameter: str, expected: bool
) -> None:
    assert chooses(pattern, (layer, parameter)) is expected


def test_freezing_does_not_change_the_weights() -> None:
    theirs = parameters(GPT)
    for name, parameter in parameters(freeze(GPT, ["block.*", "embedding"])).items():
        assert torch.equal(parameter, theirs[name])


def test_layers_share_a_build_if_they_freeze_the_same_parameters() -> None:
    embedding, *blocks, head = (layer.build for layer in GPT.layers)
    assert blocks[0] is blocks[1] is blocks[2]
    one = [layer.build for layer in freeze(GPT, ["block.1", "embedding/positions*"]).layers]
    assert one[0] is not embedding
    assert one[1] is one[3] is blocks[0]
    assert one[2] is not blocks[0]
    assert one[4] is head
    several = [layer.build for layer in freeze(GPT, ["block.[01]", "*/*bias"]).layers]
    assert several[0] is embedding  # no bias
    assert several[1] is several[2]
    assert several[3] not in (several[1], blocks[0])


@pytest.mark.parametrize("freezes", ["owner", "use"])
def test_the_owner_decides_whether_a_tied_parameter_is_frozen(freezes: str) -> None:
    def layer(name: str, *ties: Tie) -> Layer:
        return Layer(name, lambda: nn.Linear(2, 2).requires_grad_(name != freezes), ties)

    model = Model((layer("owner"), layer("use", Tie("weight", "owner", "weight"))), Sum())
    own = {f"{freezes}/weight", f"{freezes}/bias"}
    assert frozen(model) == (own | {"use/weight"} if freezes == "owner" else {"use/bias"})


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        (["head", "blok.*"], ["train.freeze: 'blok.*' matches no parameter", "did you mean block."]),
        (["Block.0"], ["'Block.0'", "did you mean block.0?"]),
        (["embeding/tokens.weight"], ["did you mean embedding/tokens.weight?"]),
        (["block.0/attention.proj.weight"], ["did you mean block.0/attention.project.weight?"]),
        (["*bias"], ["'*bias' matches no parameter", "'block.*/*.bias'"]),
        ([f"head/{WEIGHT}"], [f"matches only head/{WEIGHT}", "tied to embedding/tokens.weight"]),
        (["*"], ["train.freeze=[*] freezes every parameter"]),
        (["[be]*", "head"], ["train.freeze=[[be]*,head] freezes every parameter"]),
    ],
)
def test_mistakes(patterns: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        freeze(GPT, patterns)
    for word in words:
        assert word in str(caught.value)


def test_parameters_that_the_model_freezes_count_as_frozen() -> None:
    model = linears(lambda: nn.Linear(2, 2), nn.ReLU, lambda: nn.Linear(2, 2).requires_grad_(False))
    with pytest.raises(UserError, match="freezes every parameter"):
        freeze(model, ["layer0"])


def test_a_layer_without_parameters_cannot_be_frozen() -> None:
    with pytest.raises(UserError, match="'layer1' matches no parameter"):
        freeze(linears(partial(nn.Linear, 2, 2), nn.ReLU), ["layer1"])


def test_layers_by_pattern() -> None:
    names = ["a", "b.0", "b.1"]
    assert choose_layers(names, "b.*", "key") == ["b.0", "b.1"]
    with pytest.raises(
        UserError, match=r"key: 'b\.2' matches none of the model's 3 layers; did you mean b\.1"
    ):
        choose_layers(names, "b.2", "key")


def test_a_model_larger_than_any_host() -> None:
    model = freeze(linears(*[partial(nn.Linear, 100_000, 100_000)] * 10), ["layer[0-4]"])
    costs = layer_costs(model, torch.empty(1, 100_000))
    assert [cost.flops_backward for cost in costs] == [0] * 5 + [2 * 10**10] + [4 * 10**10] * 4


def test_naming_parameters_of_a_layer_that_reads_its_weights_leaves_the_seed_alone() -> None:
    class ReadsItsWeights(nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 2)
            if self.weight.sum().item() == 0:
                raise ValueError("no weights")

    before = torch.get_rng_state()
    model = linears(ReadsItsWeights)
    assert list(Parameters(model).of(model.layers[0])) == ["weight", "bias"]
    assert torch.equal(torch.get_rng_state(), before)


def test_costs_of_frozen_layers() -> None:
    """A product is 2 * 4 * 10 * 10 operations; a backward has one for the weights and one for the input."""
    model = linears(*[partial(nn.Linear, 10, 10)] * 4)
    inputs, moved = torch.empty(4, 10), 4 * (40 + 40)
    for patterns, flops in (
        ([], [800, 1600, 1600, 1600]),
        (["layer0"], [0, 800, 1600, 1600]),
        (["layer[01]"], [0, 0, 800, 1600]),
        (["layer2"], [800, 1600, 800, 1600]),
        (["*/bias"], [800, 1600, 1600, 1600]),
    ):
        costs = layer_costs(freeze(model, patterns), inputs)
        assert [cost.flops_backward for cost in costs] == flops
        assert [cost.flops_forward for cost in costs] == [800] * 4
        assert [cost.parameters for cost in costs] == [110] * 4
    middle, biases = (layer_costs(freeze(model, [p]), inputs)[2] for p in ("layer2", "*/bias"))
    assert middle.moved_backward == moved
    assert biases.moved_backward == moved + 3 * 4 * 100


def test_a_frozen_data_dependent_layer_has_no_backward() -> None:
    class DataDependent(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x[x[:, 0] > 0])

    costs = layer_costs(
        freeze(linears(partial(DataDependent, 10, 10), partial(nn.Linear, 10, 10)), ["layer0"]),
        torch.ones(4, 10),
    )
    assert costs[0].warning is not None
    assert (costs[0].flops_forward, costs[0].backward) == (2 * 4 * 100, 0)


def test_stages_are_cut_by_the_remaining_work() -> None:
    """Six equal layers cost 1 forward and 2 backward, the first trained one only 1: 2+3+3 | 3+3+3.

    With four of them frozen: 1+1+1+1 | 2+3.
    """
    model = linears(*[partial(nn.Linear, 500, 500)] * 6)
    frozen_start = freeze(model, ["layer[0-3]"])
    inputs = torch.empty(64, 500)
    for learning, sizes in ((model, [3, 3]), (frozen_start, [4, 2])):
        partition = partition_model(layer_costs(learning, inputs), None, range(2))
        assert [len(stage) for stage in partition.stages] == sizes


SIZES = [2, 2, 1]  # of the micro-batches, in samples
PATTERNS = {
    "first stage": ["embedding", "block.0"],
    "middle": ["block.1"],
    "last": ["block.2", "head"],
    "biases": ["*/*bias"],
    "tied": ["embedding/tokens.weight"],
    "all but the first": ["block.*", "head"],
    "all but one bias": ["[be]*", "head/norm.weight"],
}


def batches() -> Given:
    chance = torch.Generator().manual_seed(0)
    tokens = [torch.randint(11, (size, 9), generator=chance) for size in SIZES]
    return Given([row[:, :-1] for row in tokens], [row[:, 1:] for row in tokens])


def dropless(patterns: list[str]) -> Model:
    """Return the model without dropout, so that plain PyTorch can repeat it."""
    config = GPTConfig(blocks=3, width=16, heads=2, context=8, dropout=0.0)
    return freeze(gpt(config, Data(Tokens(), Tokens(), "", vocabulary=11)), patterns)


@pytest.mark.parametrize("patterns", PATTERNS.values(), ids=PATTERNS.keys())
def test_gradients_match_plain_pytorch(patterns: list[str]) -> None:
    model = dropless(patterns)
    pipeline = Pipeline(model, [2, 1, 2])
    losses = pipeline.train(batches(), len(SIZES), scale=0.1)
    layers = [build_layer(dropless([]).layers, i, 3, CPU) for i in range(5)]
    share(layers)
    names = {f"{layer.name}/{n}": p for layer in layers for n, p in layer.module.named_parameters()}
    shared = names.pop(f"head/{WEIGHT}")
    assert shared is names["embedding/tokens.weight"]
    for pattern in patterns:
        for name in fnmatch.filter(names, pattern if "/" in pattern else f"{pattern}/*"):
            names[name].requires_grad_(False)
    for i, loss in enumerate(losses):
        activation = batches().inputs(i)
        for layer in layers:
            activation = layer.module(activation)
        plain = model.loss(activation, batches().targets(i))
        (plain * 0.1).backward()
        assert loss == pytest.approx(plain.item(), rel=1e-6)
    gradients = pipeline.gradients()
    for name, parameter in names.items():
        if parameter.grad is None:
            assert gradients[name] is None
        else:
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-5, atol=1e-6)
    assert any(gradient is not None for gradient in gradients.values())
    assert (gradients[f"head/{WEIGHT}"] is None) == (not shared.requires_grad)


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize("sizes", [[1, 1, 1, 1, 1], [2, 3], [4, 1], [1, 3, 1]])
@pytest.mark.parametrize("patterns", PATTERNS.values(), ids=PATTERNS.keys())
def test_the_cut_changes_no_bit(patterns: list[str], sizes: list[int], schedule: str) -> None:
    one, other = Pipeline(freeze(GPT, patterns), [5]), Pipeline(freeze(GPT, patterns), sizes, schedule)
    assert one.train(batches(), len(SIZES)) == other.train(batches(), len(SIZES))
    ours, theirs = one.gradients(), other.gradients()
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        if gradient is None:
            assert theirs[name] is None
        else:
            assert torch.equal(gradient, theirs[name])


def test_untouched() -> None:
    assert freeze(GPT, []) is GPT
    assert freeze(GPT, ["head"]).loss is GPT.loss
    assert [replace(layer, build=None) for layer in freeze(GPT, ["*/*bias"]).layers] == [
        replace(layer, build=None) for layer in GPT.layers
    ]
