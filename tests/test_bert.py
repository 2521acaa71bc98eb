"""BERT compared with transformers' own, and what users rely on."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.unsplit import build, run
from trainer.config.models import BertConfig
from trainer.config.schema import GPTConfig
from trainer.data.dataset import Data
from trainer.data.pairs import Pairs
from trainer.data.tokenizer import Marks
from trainer.errors import UserError
from trainer.models.bert import bert
from trainer.models.gpt import gpt

VOCABULARY, CONTEXT = 23, 12
LENGTHS = torch.tensor([[4, 5], [6, 0], [2, 3]])


def data(context: int = CONTEXT) -> Data:
    """Three samples, of 12, 8 and 8 tokens with their marks."""
    tokens = torch.randint(4, VOCABULARY, (20,), generator=torch.Generator().manual_seed(1)).numpy()
    samples = Pairs(tokens, LENGTHS.numpy(), 0, Marks(1, 2, 3), named=True)
    return Data(samples, samples, "", vocabulary=VOCABULARY, longest=context)


def small(**values: Any) -> BertConfig:
    return BertConfig(**{"blocks": 2, "width": 16, "heads": 4, "context": CONTEXT, "dropout": 0.0, **values})


def moved(state: dict[str, Tensor], *, pre: bool, blocks: int = 2) -> dict[str, Tensor]:
    """Return the weights of transformers' model under the names of ours."""
    base = "roberta_prelayernorm" if pre else "bert"
    head = ("lm_head", "LayerNorm", "bias") if pre else ("cls.predictions.transform", "LayerNorm", "bias")
    names = {
        "embedding.tokens": f"{base}.embeddings.word_embeddings",
        "embedding.segments": f"{base}.embeddings.token_type_embeddings",
        "embedding.positions": f"{base}.embeddings.position_embeddings",
        "embedding.norm": f"{base}.embeddings.LayerNorm",
        "head.dense": "lm_head.dense" if pre else f"{head[0]}.dense",
        "head.norm": "lm_head.layer_norm" if pre else f"{head[0]}.LayerNorm",
        "head.linear": "lm_head.decoder" if pre else "cls.predictions.decoder",
    }
    if pre:
        names["head.last_norm"] = f"{base}.LayerNorm"
    for number in range(blocks):
        theirs = f"{base}.encoder.layer.{number}"
        names |= {
            f"block_{number}.attention.project": f"{theirs}.attention.output.dense",
            f"block_{number}.attention_norm": f"{theirs}.attention{'' if pre else '.output'}.LayerNorm",
            f"block_{number}.widen": f"{theirs}.intermediate.dense",
            f"block_{number}.narrow": f"{theirs}.output.dense",
            f"block_{number}.network_norm": f"{theirs}.{'intermediate' if pre else 'output'}.LayerNorm",
        }
    made = {}
    for ours, theirs in names.items():
        for kind in ("weight", "bias"):
            if f"{theirs}.{kind}" in state:
                made[f"{ours}.{kind}"] = state[f"{theirs}.{kind}"]
    for number in range(blocks):
        attention = f"{base}.encoder.layer.{number}.attention.self"
        for kind in ("weight", "bias"):
            parts = [state[f"{attention}.{part}.{kind}"] for part in ("query", "key", "value")]
            made[f"block_{number}.attention.query_key_value.{kind}"] = torch.cat(parts)
    if pre:  # its positions start after the number of the padding's token
        made["embedding.positions.weight"] = made["embedding.positions.weight"][4:]
    return made


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("padded", [False, True])
def test_is_the_network_of_transformers(norm: str, padded: bool) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pre = norm == "pre"
    kind = "RobertaPreLayerNorm" if pre else "Bert"
    torch.manual_seed(2)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=CONTEXT + (4 if pre else 0),
        type_vocab_size=2,
        layer_norm_eps=1e-12,
        pad_token_id=3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    theirs = getattr(transformers, f"{kind}ForMaskedLM")(config).double()
    with torch.no_grad():
        for parameter in theirs.parameters():  # far from the initial values, so that every term counts
            parameter.add_(0.3 * torch.randn_like(parameter))
    ours = build(bert(small(norm=norm), data())).double()
    ours.load_state_dict(moved(theirs.state_dict(), pre=pre))
    inputs = data().training.inputs(np.array([2, 0, 1] if padded else [0, 0]))
    mask = inputs["attention_mask"]
    assert bool((mask == 0).any()) == padded
    if not padded:
        del inputs["attention_mask"]
    expected, output = theirs(**inputs).logits, run(ours, inputs)
    is_token = mask.bool()  # theirs numbers positions without padding, if it normalises first
    torch.testing.assert_close(output[is_token], expected[is_token], rtol=1e-10, atol=1e-10)

    weights = torch.randn_like(expected) * mask[..., None]
    (expected * weights).sum().backward()
    (output * weights).sum().backward()
    gradients = moved({n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}, pre=pre)
    mine = {name: parameter.grad for name, parameter in ours.named_parameters()}
    compared = mine.keys() & gradients.keys()
    assert len(compared) >= len(mine) - 2  # a tied weight and bias have one name each there
    for name in compared:
        torch.testing.assert_close(mine[name], gradients[name], rtol=1e-9, atol=1e-9, msg=name)


def test_padding_changes_nothing() -> None:
    """The logits of a sample's tokens are those that it has alone."""
    layers = build(bert(small(positions="rotary", norm="pre"), data())).double().eval()
    together = run(layers, data().training.inputs(np.array([0, 1, 2])))
    for sample in range(3):
        alone = run(layers, data().training.inputs(np.array([sample])))
        torch.testing.assert_close(together[sample, : alone.shape[1]], alone[0], rtol=1e-9, atol=1e-9)


def test_both_sides_are_seen() -> None:
    layers = build(bert(small(), data())).eval()
    tokens = torch.tensor([[5, 6, 7, 8]])
    for changed in range(4):
        other = tokens.clone()
        other[0, changed] = 9
        difference = (run(layers, tokens) - run(layers, other)).abs().sum(-1)
        assert (difference > 0).all()


def test_segments_and_positions_count() -> None:
    tokens = torch.tensor([[5, 5, 5]])
    for positions in ("learned", "rotary"):
        layers = build(bert(small(positions=positions), data())).eval()
        plain = run(layers, {"input_ids": tokens})
        assert torch.equal(plain, run(layers, tokens))
        segments = {"input_ids": tokens, "token_type_ids": torch.tensor([[0, 0, 1]])}
        assert not torch.equal(plain, run(layers, segments))
        assert torch.equal(plain[0, 0], plain[0, 1]) == (positions == "rotary")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bert(small(width=18), data()), "model.width=18 is not divisible by model.heads=4"),
        (lambda: bert(small(context=8), data()), "have 12 tokens (data.context), more than model.context=8"),
        (lambda: gpt(GPTConfig(context=CONTEXT), data()), "model.name=gpt takes tokens alone, and this data"),
    ],
)
def test_refusals(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        make()
