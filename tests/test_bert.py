"""BERT compared with transformers' own, and what users rely on."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.test_gpt import build, run
from trainer.config.schema import BertConfig, GPTConfig
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
    inputs = data().training.inputs(LENGTHS[:, 0].argsort().numpy() if padded else torch.zeros(2).long().numpy())
    assert bool((inputs["attention_mask"] == 0).any()) == padded
    if not padded:
        del inputs["attention_mask"]
    expected, output = theirs(**inputs).logits, run(ours, inputs)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)

    targets = data().training.targets(torch.zeros(1).long().numpy())  # any
    weights = torch.randn_like(expected) + targets[0, 0]
    (expected * weights).sum().backward()
    (output * weights).sum().backward()
    gradients = moved({n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}, pre=pre)
    mine = {name: parameter.grad for name, parameter in ours.named_parameters()}
    compared = mine.keys() & gradients.keys()
    assert len(compared) >= len(mine) - 2  # a tied weight and bias have one name each there
    for name in compared:
        torch.testing.assert_close(mine[name], gradients[name], rtol=1e-9, atol=1e-9, msg=name)
