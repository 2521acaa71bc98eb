"""GPT compared with a naive implementation, and the properties that users rely on."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tests.support.unsplit import build, run
from trainer.config.schema import GPTConfig
from trainer.data.dataset import Data
from trainer.data.text import Windows
from trainer.errors import UserError
from trainer.models.gpt import MASKED, TokenLoss, gpt, rotate

VOCABULARY = 11
POSITIONS = pytest.mark.parametrize("positions", ["learned", "rotary"])


def make_data(context: int = 8, vocabulary: int | None = VOCABULARY) -> Data:
    windows = Windows(np.arange(1000, dtype=np.uint16) % VOCABULARY, context)
    return Data(training=windows, validation=windows, fingerprint="", vocabulary=vocabulary)


def make_config(**values: object) -> GPTConfig:
    small = {"blocks": 2, "width": 16, "heads": 4, "context": 8, "dropout": 0.0}
    return GPTConfig(**{**small, **values})  # type: ignore[arg-type]


def random_tokens(batch: int, time: int, seed: int = 1) -> Tensor:
    return torch.randint(VOCABULARY, (batch, time), generator=torch.Generator().manual_seed(seed))


def naive_rotate(x: Tensor) -> Tensor:
    """Multiply the complex numbers x[i] + 1j * x[i + half] by exp(1j * position / 10000 ** (i / half))."""
    time, width = x.shape[-2:]
    half = width // 2
    turned = torch.empty_like(x)
    for position in range(time):
        for i in range(half):
            angle = position / 10_000 ** (i / half)
            a, b = x[..., position, i], x[..., position, i + half]
            turned[..., position, i] = a * math.cos(angle) - b * math.sin(angle)
            turned[..., position, i + half] = a * math.sin(angle) + b * math.cos(angle)
    return turned


def naive_attention(x: Tensor, weights: dict[str, Tensor], heads: int, rotary: bool) -> Tensor:
    """Attend head by head and position by position, with an explicit softmax."""
    batch, time, width = x.shape
    joined = x @ weights["attention.query_key_value.weight"].T + weights["attention.query_key_value.bias"]
    size = width // heads
    mixed = torch.zeros_like(x)
    for head in range(heads):
        columns = slice(head * size, (head + 1) * size)
        query, key, value = (part[..., columns] for part in joined.split(width, dim=-1))
        if rotary:
            query, key = naive_rotate(query), naive_rotate(key)
        for row in range(batch):
            for now in range(time):
                scores = torch.stack([query[row, now] @ key[row, then] for then in range(now + 1)])
                shares = torch.exp(scores / math.sqrt(size))
                mixed[row, now, columns] = (shares / shares.sum()) @ value[row, : now + 1]
    return mixed @ weights["attention.project.weight"].T + weights["attention.project.bias"]


def naive_norm(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    spread = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return centred / spread * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def naive_gpt(layers: nn.ModuleDict, tokens: Tensor, heads: int, rotary: bool) -> Tensor:
    states = {name: layer.state_dict() for name, layer in layers.items()}
    x = states["embedding"]["tokens.weight"][tokens]
    if not rotary:
        x = x + states["embedding"]["positions.weight"][: tokens.shape[1]]
    for name, weights in states.items():
        if name.startswith("block"):
            x = x + naive_attention(naive_norm(x, weights, "attention_norm"), weights, heads, rotary)
            wide = naive_norm(x, weights, "network_norm") @ weights["widen.weight"].T + weights["widen.bias"]
            wide = wide * 0.5 * (1 + torch.erf(wide / math.sqrt(2)))
            x = x + wide @ weights["narrow.weight"].T + weights["narrow.bias"]
    return naive_norm(x, states["head"], "norm") @ states["head"]["linear.weight"].T


@POSITIONS
def test_matches_the_naive_network(positions: str) -> None:
    config = make_config(positions=positions)
    layers = build(gpt(config, make_data())).double()
    with torch.no_grad():
        for parameter in layers.parameters():  # far from the initial values, so that every term counts
            parameter.normal_(std=0.5)
        tokens = random_tokens(2, 8)
        expected = naive_gpt(layers, tokens, config.heads, positions == "rotary")
        # The rotary angles are float32.
        torch.testing.assert_close(run(layers, tokens), expected, rtol=1e-5, atol=1e-5)


def test_layers_in_order() -> None:
    model = gpt(make_config(blocks=3), make_data())
    assert [layer.name for layer in model.layers] == ["embedding", "block.0", "block.1", "block.2", "head"]


@POSITIONS
@pytest.mark.parametrize("changed", [0, 3, 7])
def test_a_later_token_never_changes_earlier_logits(positions: str, changed: int) -> None:
    layers = build(gpt(make_config(positions=positions), make_data()))
    tokens = random_tokens(2, 8)
    other = tokens.clone()
    other[:, changed] = (other[:, changed] + 1) % VOCABULARY
    before, after = run(layers, tokens), run(layers, other)
    assert torch.equal(before[:, :changed], after[:, :changed])
    assert not torch.isclose(before[:, changed:], after[:, changed:]).all(-1).any()


@POSITIONS
def test_shorter_inputs_give_the_logits_of_the_prefix(positions: str) -> None:
    layers = build(gpt(make_config(positions=positions), make_data()))
    tokens = random_tokens(2, 8)
    for time in range(1, 9):
        torch.testing.assert_close(run(layers, tokens[:, :time]), run(layers, tokens)[:, :time])


@settings(deadline=None, max_examples=30)
@given(width=st.sampled_from([2, 4, 6, 16]), seed=st.integers(0, 1000))
def test_rotary_products_depend_on_distance_only(width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    query, key = torch.randn(2, width, generator=generator)
    scores = rotate(query.repeat(10, 1)) @ rotate(key.repeat(10, 1)).T
    for distance in range(-9, 10):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scores[0, 0], query @ key, rtol=1e-4, atol=1e-4)


def test_positions_distinguish_equal_tokens() -> None:
    tokens = torch.tensor([[1, 2, 3, 3, 3, 3, 3, 3], [2, 1, 3, 3, 3, 3, 3, 3]])
    for positions in ("learned", "rotary"):
        logits = run(build(gpt(make_config(positions=positions), make_data())), tokens)[:, -1]
        assert not torch.equal(logits[0], logits[1])


def test_a_tied_head_trains_the_embedding() -> None:
    model = gpt(make_config(tied=True), make_data())
    (tie,) = model.layers[-1].ties
    assert (tie.owner, tie.owner_parameter, tie.parameter) == ("embedding", "tokens.weight", "linear.weight")
    layers = build(model)
    assert layers["head"].linear.weight is layers["embedding"].tokens.weight
    # Only through the head do the last logits reach rows of tokens that are not in the input.
    run(layers, torch.zeros(1, 1, dtype=torch.long)).square().sum().backward()
    assert (layers["embedding"].tokens.weight.grad != 0).any(dim=1).all()


def test_an_untied_head_has_its_own_weight() -> None:
    model = gpt(make_config(tied=False), make_data())
    assert all(not layer.ties for layer in model.layers)
    layers = build(model)
    assert not torch.equal(layers["head"].linear.weight, layers["embedding"].tokens.weight)


def test_initial_weights_are_those_of_gpt2() -> None:
    data = make_data(vocabulary=500)
    layers = build(gpt(make_config(width=128, blocks=8, context=200), data))
    for name, parameter in layers.named_parameters():
        if "norm" in name:
            assert torch.equal(parameter, torch.full_like(parameter, float(name.endswith("weight"))))
        elif name.endswith("bias"):
            assert not parameter.any()
        else:
            residual = name.endswith(("project.weight", "narrow.weight"))
            std = 0.02 / math.sqrt(2 * 8) if residual else 0.02
            assert parameter.std().item() == pytest.approx(std, rel=0.03), name
            assert abs(parameter.mean().item()) < std / 20, name


def test_a_layer_depends_on_its_seed_alone() -> None:
    model = gpt(make_config(), make_data())
    together = build(model, seed=3)["embedding"].state_dict()
    torch.manual_seed(3)
    alone = model.layers[0].build().state_dict()
    assert all(torch.equal(alone[name], together[name]) for name in together)


@POSITIONS
def test_builds_and_runs_without_memory(positions: str) -> None:
    config = make_config(positions=positions, width=1024, heads=8, blocks=1, dropout=0.1, context=512)
    model = gpt(config, make_data(context=512, vocabulary=50_000))
    flops = []
    with torch.device("meta"):
        activation: Tensor = torch.zeros(4, 512, dtype=torch.long)
        for layer in model.layers:
            module = layer.build()
            assert all(parameter.is_meta for parameter in module.parameters())
            with FlopCounterMode(display=False) as counter:
                activation = module(activation)
            flops.append(counter.get_total_flops())
    assert activation.shape == (4, 512, 50_000)
    tokens = 4 * 512
    dense = 2 * tokens * 12 * 1024 * 1024
    attention = 2 * 2 * tokens * 512 * 1024
    assert flops == [0, dense + attention, 2 * tokens * 1024 * 50_000]


@POSITIONS
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("autocast", [False, True])
def test_layer_outputs_are_contiguous(positions: str, dropout: float, autocast: bool) -> None:
    model = gpt(make_config(positions=positions, dropout=dropout), make_data())
    activation = random_tokens(3, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        for layer in build(model).values():
            activation = layer(activation)
            assert activation.is_contiguous()


def test_dropout_follows_the_generator_and_stops_in_evaluation() -> None:
    layers = build(gpt(make_config(dropout=0.3), make_data()))
    tokens = random_tokens(2, 8)
    torch.manual_seed(5)
    first, second = run(layers, tokens), run(layers, tokens)
    torch.manual_seed(5)
    again = run(layers, tokens)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    layers.eval()
    assert torch.equal(run(layers, tokens), run(layers, tokens))


def test_dropout_reaches_every_part() -> None:
    """With everything dropped, a block adds nothing and the embedding is zero."""
    layers = build(gpt(make_config(dropout=1.0, blocks=1), make_data()))
    assert not layers["embedding"](random_tokens(2, 8)).any()
    x = torch.randn(2, 8, 16)
    assert torch.equal(layers["block_0"](x), x)


def test_attention_weights_are_dropped() -> None:
    attention = build(gpt(make_config(dropout=0.5), make_data()))["block_0"].attention
    x = torch.randn(2, 8, 16)
    assert not torch.equal(attention(x), attention(x))


@settings(deadline=None, max_examples=40)
@given(batch=st.integers(1, 4), time=st.integers(1, 6), masked=st.floats(0, 0.9), seed=st.integers(0, 1000))
def test_loss_sum_over_count_is_the_mean_over_unmasked_targets(
    batch: int, time: int, masked: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, time, VOCABULARY, generator=generator)
    targets = torch.randint(VOCABULARY, (batch, time), generator=generator)
    targets[torch.rand(batch, time, generator=generator) < masked] = MASKED
    loss = TokenLoss()
    kept = targets != MASKED
    assert loss.count(targets) == int(kept.sum())
    if kept.any():
        expected = F.cross_entropy(logits[kept], targets[kept])
        torch.testing.assert_close(loss(logits, targets) / loss.count(targets), expected)


def test_a_fully_masked_batch_adds_nothing() -> None:
    logits = torch.randn(2, 3, VOCABULARY, requires_grad=True)
    targets = torch.full((2, 3), MASKED)
    loss = TokenLoss()(logits, targets)
    loss.backward()
    assert loss.item() == 0
    assert TokenLoss().count(targets) == 0
    assert not logits.grad.any()  # and not NaN


def test_half_precision_logits_are_summed_in_float32() -> None:
    logits = torch.randn(64, 64, VOCABULARY).bfloat16()
    targets = torch.randint(VOCABULARY, (64, 64))
    expected = TokenLoss()(logits.double(), targets)
    assert TokenLoss()(logits, targets).item() == pytest.approx(expected.item(), rel=1e-5)


@POSITIONS
def test_learns_a_sequence_by_heart(positions: str) -> None:
    data = make_data()
    model = gpt(make_config(positions=positions), data)
    layers = build(model)
    optimizer = torch.optim.AdamW(layers.parameters(), lr=1e-2)
    for step in range(60):
        samples = np.arange(8) + step
        target = data.training.targets(samples)
        loss = model.loss(run(layers, data.training.inputs(samples)), target) / model.loss.count(target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1 < math.log(VOCABULARY)


@pytest.mark.parametrize(
    ("values", "vocabulary", "words"),
    [
        ({}, None, ["model.name=gpt", "data=text"]),
        ({"width": 18}, VOCABULARY, ["model.width=18", "model.heads=4"]),
        ({"width": 12, "positions": "rotary"}, VOCABULARY, ["model.positions=rotary", "odd width 3"]),
        ({"context": 4}, VOCABULARY, ["model.context=4", "8 tokens", "data.context"]),
    ],
)
def test_what_does_not_fit_is_told(
    values: dict[str, object], vocabulary: int | None, words: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        gpt(make_config(**values), make_data(vocabulary=vocabulary))
    for word in words:
        assert word in str(caught.value)
