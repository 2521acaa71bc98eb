"""Hugging Face's models write what transformers' `generate` writes, token for token, however they are cut."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.families.configurations import VOCABULARY
from tests.generating import CUTS, PROMPTS, TOKENS, expected, saved
from tests.support.configs import valid
from tests.support.hf_models import tokens
from tests.support.writing import writer, written
from trainer.config.schema import GenerateConfig, HFConfig
from trainer.errors import UserError
from trainer.generate.model import load_model
from trainer.generate.texts import Text

transformers = pytest.importorskip("transformers")
hf = pytest.importorskip("trainer.hf.build").hf

FAMILIES = ["gpt2", "llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "bloom"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_padded_batch_is_continued_as_transformers_does(family: str, tmp_path: Path) -> None:
    model = saved(family, tmp_path)
    wanted = expected(model)
    assert len({token for row in wanted for token in row}) > 1
    config = GenerateConfig(tokens=TOKENS, temperature=0, batch=4, in_flight=1)
    path = HFConfig(path=str(tmp_path))
    layers = hf(path, tokens(VOCABULARY))
    for sizes in CUTS if family == "llama" else CUTS[1:]:
        found = writer(layers, sizes, config, None, model_config=path)
        assert found.cached
        assert [text.written for text in written(found, PROMPTS, config)] == wanted
        repeat = [stage._decoder.repeats for stage in found.stages.values()]  # type: ignore[attr-defined]
        assert all(repeat) or family == "bloom"  # its masks are of a kind of their own


def test_a_model_whose_state_is_not_of_keys_and_values(tmp_path: Path) -> None:
    """Every token is computed from all before it, a text at a time: without padding."""
    model = saved("mamba", tmp_path)
    path = HFConfig(path=str(tmp_path))
    config = GenerateConfig(tokens=3, temperature=0)
    found = writer(hf(path, tokens(VOCABULARY)), [2, 3], config, None, model_config=path)
    assert not found.cached
    for prompt, text in zip(PROMPTS[:2], written(found, PROMPTS[:2], config), strict=True):
        row = model.generate(torch.tensor([prompt]), max_new_tokens=3, do_sample=False, eos_token_id=None)
        assert row[0, len(prompt) :].tolist() == text.written


def test_texts_that_join_and_leave_are_as_alone(tmp_path: Path) -> None:
    """With a sliding window, which joining texts fill at different times."""
    model = saved("gemma3_text", tmp_path)
    path = HFConfig(path=str(tmp_path))
    prompts = [[3 + i, 4 + i, *range(5, 5 + i % 5)] for i in range(9)]
    wanted, ends = [], [7, 11, 30, 41]
    for prompt in prompts:
        found = model.generate(
            torch.tensor([prompt]), max_new_tokens=TOKENS, do_sample=False, pad_token_id=0, eos_token_id=ends
        )
        wanted.append([token for token in found[0, len(prompt) :].tolist() if token not in ends])
    assert len(set(map(len, wanted))) > 1
    config = GenerateConfig(tokens=TOKENS, temperature=0, batch=3, in_flight=2)
    found = writer(hf(path, tokens(VOCABULARY)), [2, 3], config, None, model_config=path)
    assert [text.written for text in written(found, prompts, config, ends)] == wanted


def test_a_penalty_as_in_transformers(tmp_path: Path) -> None:
    """Padding counts as a token there, so the prompts have none that is like it."""
    model = saved("llama", tmp_path)
    path = HFConfig(path=str(tmp_path))
    config = GenerateConfig(tokens=TOKENS, temperature=0, batch=1, repetition_penalty=1.5)
    found = writer(hf(path, tokens(VOCABULARY)), [2, 3], config, None, model_config=path)
    texts = [text.written for text in written(found, PROMPTS, config)]
    for prompt, text in zip(PROMPTS, texts, strict=True):
        row = model.generate(
            torch.tensor([prompt]), max_new_tokens=TOKENS, do_sample=False, pad_token_id=0, eos_token_id=None,
            repetition_penalty=1.5,
        )  # fmt: skip
        assert row[0, len(prompt) :].tolist() == text


def test_each_stage_keeps_the_keys_and_values_of_its_own_blocks(tmp_path: Path) -> None:
    """No more columns than the window of a block that has one."""
    saved("gemma3_text", tmp_path)
    path = HFConfig(path=str(tmp_path))
    config = GenerateConfig(tokens=TOKENS, temperature=0, batch=2, in_flight=1)
    found = writer(hf(path, tokens(VOCABULARY)), [2, 3], config, None, model_config=path)
    kept: dict[int, list[int]] = {}

    def finish(text: Text) -> None:
        kept.update({n: [t.shape[2] for t in stage.caches[0].tensors()] for n, stage in found.stages.items()})
        text.finish = "length"

    found.write([Text(i, [3, 4, 5], 3, 11) for i in range(2)], finish)
    columns = 3 + 10  # the last token is not computed
    layer_types = transformers.AutoConfig.from_pretrained(tmp_path).layer_types
    of_block = [7 if kind == "sliding_attention" else columns for kind in layer_types]
    assert kept == {0: [of_block[0]] * 2, 1: [size for size in of_block[1:] for _ in range(2)]}


def test_half_precision_does_not_depend_on_the_cut(tmp_path: Path) -> None:
    saved("qwen3", tmp_path)
    path = HFConfig(path=str(tmp_path))
    config = GenerateConfig(tokens=TOKENS, temperature=1.0, batch=4, in_flight=1)
    texts = []
    for sizes in CUTS[1:]:
        found = writer(hf(path, tokens(VOCABULARY)), sizes, config, None, model_config=path, precision="bf16")
        texts.append([text.written for text in written(found, PROMPTS, config)])
    assert texts[0] == texts[1]


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    module = pytest.importorskip("trainer.hf.tokenizer")
    with pytest.raises(UserError, match=r"has no tokenizer: give generate.tokenizer=FILE"):
        module.FolderTokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="its tokenizer cannot be read"):
        module.FolderTokenizer(str(tmp_path))


@pytest.mark.parametrize(
    ("family", "options", "words"),
    [
        ("bert", {}, "BertForMaskedLM fills gaps and does not continue texts"),
        ("llama", {"tokenizer": "bytes"}, "has 256 tokens, and the model of .* knows 97: use the tokenizer"),
        ("llama", {}, "has no tokenizer: give generate.tokenizer=FILE"),
    ],
)
def test_models_that_write_no_texts(family: str, options: dict[str, str], words: str, tmp_path: Path) -> None:
    saved(family, tmp_path)
    config = valid()
    config.model, config.generate = HFConfig(path=str(tmp_path)), GenerateConfig(**options)
    config.run.dir = None
    ranks: Any = SimpleNamespace(size=1)
    with pytest.raises(UserError, match=words):
        load_model(config, ranks)
