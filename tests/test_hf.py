"""Hugging Face's models as layers: their outputs and gradients, weights from folders, and refusals."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.families.configurations import families
from tests.families.page import listed_as_equal
from tests.support.cutting import backward, built, forward, gradient_of, without_dropout
from tests.support.hf_models import SMALL, folder, tokens
from trainer.config.schema import HFConfig
from trainer.errors import UserError

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from trainer.hf.build import hf  # noqa: E402  (needs transformers)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", SMALL)
def test_outputs_and_gradients_are_those_of_transformers(kind: str, padded: bool, root: Path) -> None:
    path = folder(kind, root)
    assert len(list(path.glob("*.safetensors"))) > 1
    layers = built(hf(HFConfig(path=str(path)), tokens(padded=padded)))
    auto = transformers.AutoModelForMaskedLM if kind == "bert" else transformers.AutoModelForCausalLM
    implementation = "sdpa_padded" if padded else "sdpa"
    model = auto.from_pretrained(path, attn_implementation=implementation).train()
    model.config.use_cache = False
    without_dropout(model, *(layer.module for layer in layers))
    inputs = tokens(padded=padded).training.inputs(torch.arange(3))
    expected = (model(**inputs) if padded else model(inputs)).logits
    gradient = torch.randn_like(expected)
    expected.backward(gradient)
    for _ in range(2):
        for layer in layers:
            layer.module.zero_grad()
        output, tape = forward(layers, inputs)
        assert torch.equal(output, expected)
        backward(tape, gradient)
        for name, parameter in model.named_parameters():
            assert torch.equal(gradient_of(name, layers), parameter.grad), name


def test_new_weights_are_drawn_as_transformers_draws_them(root: Path) -> None:
    config = HFConfig(path=str(folder("gpt2", root)), load="config", config={"n_layer": 2, "n_embd": 128})
    layers = built(hf(config, tokens()))
    assert [layer.name for layer in layers] == ["first", "transformer.h.0", "transformer.h.1"]
    weights = dict(layers[1].module.named_parameters())
    assert weights["transformer.h.0.attn.c_attn.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    assert weights["transformer.h.0.attn.c_proj.weight"].std().item() == pytest.approx(0.01, rel=0.05)
    assert not weights["transformer.h.0.attn.c_proj.bias"].any()


def copied(path: Path, target: Path, **changes: Any) -> Path:
    """Return a copy of a folder with another configuration."""
    target.mkdir()
    for file in path.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | changes))
    return target


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "shape": ({}, {"config": {"intermediate_size": 48}}, "has the shape (32, 16), the model's"),
    "missing layer": ({}, {"config": {"num_hidden_layers": 5}}, "the files have no model.layers.3."),
    "key": ({}, {"config": {"num_hiden_layers": 5}}, "no such value; did you mean num_hidden_layers?"),
    "code": ({"auto_map": {"AutoConfig": "x.Y"}, "model_type": "llama"}, {}, "needs code of its own"),
    "quantised": ({"quantization_config": {"bits": 4}}, {}, "has quantised weights"),
    "vocabulary": ({}, {"config": {"vocab_size": 250}}, "256 distinct tokens, and model.path="),
    "type": ({"model_type": "lama"}, {}, "transformers cannot read config.json"),
    "positions": (
        {"max_position_embeddings": 8},
        {},
        "have up to 12 tokens (data.context), and the model has 8",
    ),
    "blocks": ({}, {"blocks": ["model.layer"]}, "the model has no such part; did you mean model.layers?"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refusals(what: str, root: Path, tmp_path: Path) -> None:
    changes, options, message = REFUSED[what]
    path = copied(folder("llama", root), tmp_path / "model", **changes)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        built(hf(HFConfig(path=str(path), **options), tokens()))
    assert "\n" not in str(caught.value)


def test_damaged_folders(root: Path, tmp_path: Path) -> None:
    def refused(path: Path, words: str) -> None:
        with pytest.raises(UserError, match=re.escape(words)):
            built(hf(HFConfig(path=str(path)), tokens()))

    refused(tmp_path / "nothing", "has no config.json")
    path = copied(folder("llama", root), tmp_path / "model")
    index = json.loads((path / "model.safetensors.index.json").read_text())
    file = path / index["weight_map"].pop("model.layers.1.mlp.up_proj.weight")
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(path, "the files have no model.layers.1.mlp.up_proj.weight")
    path = copied(folder("llama", root), tmp_path / "cut")
    (path / file.name).write_bytes(file.read_bytes()[:100])
    refused(path, "cannot be read")
    (path / file.name).unlink()
    refused(path, "cannot be read")
    (path / "model.safetensors.index.json").unlink()
    refused(path, "has neither model.safetensors nor")


def test_the_page_lists_families() -> None:
    """Those that `python -m tests.families` found equal; `tests/parallel/test_families.py` repeats some."""
    listed = listed_as_equal()
    assert len(listed) >= 46
    assert set(listed) < set(families())
