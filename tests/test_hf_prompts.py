"""Prompts and conversations: what the model learns to write, padding, truncation, and refusals."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.chat import MARKED, TEMPLATE, conversations, prompts, tokenizer, written
from trainer.config.data import PromptsConfig
from trainer.data.dataset import Data
from trainer.data.masked import IGNORED
from trainer.errors import UserError

pytest.importorskip("transformers", reason="transformers is not installed")

from trainer.hf.conversations import Conversations
from trainer.hf.prompts import load, prepare
from trainer.hf.tokenizer import FolderTokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer().save_pretrained(path)
    return path


def loaded(file: Path, folder: Path, **options: Any) -> Data:
    given = {"validation": 0.2, "context": 64, "cache": str(file.parent / "cache"), **options}
    config = PromptsConfig(path=str(file), tokenizer=str(folder), **given)
    prepare(config)
    return load(config)


def learnt(data: Data) -> set[tuple[str, str]]:
    """Return the text of every sample, and that of its targets."""
    library = tokenizer()
    found = set()
    for part in (data.training, data.validation):
        for sample in range(len(part)):
            inputs, (targets,) = part.inputs(np.array([sample])), part.targets(np.array([sample])).numpy()
            found.add(
                (library.decode(inputs["input_ids"][0]), library.decode(targets[targets != IGNORED].tolist()))
            )
    return found


def test_the_completion_is_learnt(folder: Path, tmp_path: Path) -> None:
    entries = prompts(20)
    data = loaded(written(entries, tmp_path / "sums.jsonl"), folder)
    assert len(data.training) == 16
    assert learnt(data) == {(e["prompt"] + e["completion"], e["completion"] + "<|end|>") for e in entries}


def test_what_the_assistant_says_is_learnt(folder: Path, tmp_path: Path) -> None:
    entries = conversations(10)
    file = written(entries, tmp_path / "chats.jsonl")
    found = learnt(loaded(file, folder))
    answers = {
        "".join(f"{m['content']}<|end|>" for m in e["messages"] if m["role"] == "assistant") for e in entries
    }
    assert {answer for _, answer in found} == answers
    tokenizer(MARKED).save_pretrained(tmp_path / "marked")
    assert learnt(loaded(file, tmp_path / "marked")) == found


def test_padding(folder: Path, tmp_path: Path) -> None:
    data = loaded(written(prompts(20), tmp_path / "sums.jsonl"), folder)
    everything = np.arange(16)
    together, targets = data.training.inputs(everything), data.training.targets(everything)
    lengths = together["attention_mask"].sum(1)
    assert len(set(lengths.tolist())) > 1
    assert together["input_ids"].shape == targets.shape == (16, int(lengths.max()))
    assert data.longest is not None
    assert data.longest >= int(lengths.max())
    for sample in everything:
        alone = data.training.inputs(everything[sample : sample + 1])
        length = int(lengths[sample])
        assert alone["attention_mask"].all()
        assert (together["input_ids"][sample, :length] == alone["input_ids"][0]).all()
        assert (together["attention_mask"][sample] == (torch.arange(int(lengths.max())) < length)).all()
        assert (targets[sample, :length] == data.training.targets(everything[sample : sample + 1])).all()
        assert (targets[sample, length:] == IGNORED).all()


def test_long_samples_are_cut(folder: Path, tmp_path: Path) -> None:
    entries = [
        *prompts(8),
        {"prompt": "one", "completion": " two" * 30},
        {"prompt": "one" * 90, "completion": "!"},
    ]
    library = tokenizer()
    long = sum(len(library(e["prompt"] + e["completion"])["input_ids"]) > 16 for e in entries)
    data = loaded(written(entries, tmp_path / "sums.jsonl"), folder, context=16)
    assert data.longest == 16
    assert len(data.training) + len(data.validation) == 9
    (note,) = data.notes
    assert re.search(rf": {long} samples are longer than data.context=16, and were cut off; 1 have no", note)
    (tmp_path / "long.jsonl").write_text(json.dumps(entries[-1]))
    with pytest.raises(UserError, match=r"data.context=16 cuts all 1 completions off"):
        loaded(tmp_path / "long.jsonl", folder, context=16)


MESSAGES = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not JSON"),
        ("3", "it has int: it must be an object"),
        ('{"prompt": "a"}', 'it has prompt: it must be an object with "prompt" and "completion"'),
        ('{"prompt": "a", "completion": ""}', "the completion is empty"),
        ('{"prompt": "a", "completion": 3}', "must be texts"),
        ('{"messages": []}', "messages must be a list"),
        ('{"messages": [{"content": "a"}]}', "message 1 has no role"),
        ('{"messages": [{"role": "user"}]}', "message 1 has no content"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "no message is of the assistant"),
    ],
)
def test_broken_lines(line: str, words: str, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "broken.jsonl"
    file.write_text(f"{json.dumps(prompts(1)[0])}\n\n{line}\n")
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        loaded(file, folder)
    assert str(caught.value).startswith(f"{file}:3: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (None, "has no chat template, which messages need"),
        ("{{ raise_exception('roles must alternate') }}", "refuses the messages: roles must alternate"),
        (TEMPLATE + "{{ messages | length }}", "changes what was said before message 2"),
    ],
)
def test_templates_that_do_not_fit(template: str | None, words: str, tmp_path: Path) -> None:
    tokenizer(template).save_pretrained(tmp_path / "folder")
    (tmp_path / "chats.jsonl").write_text(f"{MESSAGES}\n")
    with pytest.raises(UserError, match=re.escape(words)):
        loaded(tmp_path / "chats.jsonl", tmp_path / "folder")


def test_files_that_do_not_fit(folder: Path, tmp_path: Path) -> None:
    def refused(words: str, file: str, tokens: Path = folder) -> None:
        with pytest.raises(UserError, match=re.escape(words)):
            loaded(tmp_path / file, tokens)

    (tmp_path / "empty.jsonl").write_text("")
    refused("is empty", "empty.jsonl")
    (tmp_path / "blank.jsonl").write_text("\n\n")
    refused("has no sample with anything to learn", "blank.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "\xe9", "completion": "b"}')
    refused("is not UTF-8", "latin.jsonl")
    written(prompts(1), tmp_path / "one.jsonl")
    refused("has 1 samples: it needs two", "one.jsonl")
    refused("is no folder", "one.jsonl", tmp_path / "nothing")
    (tmp_path / "bare").mkdir()
    refused("transformers cannot read a tokenizer", "one.jsonl", tmp_path / "bare")
    refused("does not exist", "gone.jsonl")
    refused("is a folder: give one jsonl file", "")


def test_a_conversation_to_continue_begins_as_in_training(folder: Path) -> None:
    (messages,) = (entry["messages"] for entry in conversations(1))
    begun = FolderTokenizer(str(folder)).converse(messages[:3])
    lines = Conversations(str(folder)).tokens(json.dumps({"messages": messages}))
    trained = [token for token, _ in lines]
    assert trained[: len(begun)] == begun
    assert [learns for _, learns in lines[len(begun) :]] == [True] * (len(lines) - len(begun))


def test_conversations_need_a_template_that_takes_them(tmp_path: Path) -> None:
    tokenizer(None).save_pretrained(tmp_path / "none")
    with pytest.raises(UserError, match="has no chat template"):
        FolderTokenizer(str(tmp_path / "none")).converse([{"role": "user", "content": "a"}])
    tokenizer("{{ raise_exception('no such role') }}").save_pretrained(tmp_path / "strict")
    with pytest.raises(UserError, match="the chat template refuses it: no such role"):
        FolderTokenizer(str(tmp_path / "strict")).converse([{"role": "x", "content": "a"}])
