"""Prompts come from the command line, a file or standard input."""

import io
import json
from pathlib import Path

import pytest

from trainer.config.schema import GenerateConfig
from trainer.errors import UserError
from trainer.generate.prompts import Prompt, read_prompts


def read(file: Path, text: str) -> list[Prompt]:
    file.write_text(text)
    return read_prompts(GenerateConfig(prompts=str(file)))


def test_one_prompt() -> None:
    assert [prompt.text for prompt in read_prompts(GenerateConfig(prompt="Hello"))] == ["Hello"]


def test_lines(tmp_path: Path) -> None:
    found = read(tmp_path / "prompts.txt", '  one \r\n\ntwo\u2028three\n{"prompt": 1}\n')
    assert [prompt.text for prompt in found] == ["  one ", "two\u2028three", '{"prompt": 1}']
    assert found[1].where.startswith("line 3 of generate.prompts=")


def test_objects(tmp_path: Path) -> None:
    found = read(tmp_path / "prompts.jsonl", '{"prompt": "a\\nb", "id": 7}\n\n{"prompt": ""}')
    assert [prompt.text for prompt in found] == ["a\nb", ""]
    assert found[0].given == {"prompt": "a\nb", "id": 7}


def test_conversations(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "2 + 2?"}]
    lines = [{"messages": messages, "id": 7}, {"prompt": "", "messages": messages}]
    found = read(tmp_path / "prompts.jsonl", "\n".join(map(json.dumps, lines)))
    assert [prompt.messages for prompt in found] == [messages, None]


@pytest.mark.parametrize(
    ("text", "prompts"), [("one\ntwo", ["one", "two"]), ('{"prompt": "one"}\n', ["one"])]
)
def test_standard_input(text: str, prompts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert [prompt.text for prompt in read_prompts(GenerateConfig(prompts="-"))] == prompts


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("p.txt", "\n \n", "p.txt is empty: give one prompt a line"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": ', "line 2 of .*p.jsonl is not JSON"),
        ("p.jsonl", '{"text": "a"}', r"line 1 of .*p.jsonl must be an object such as"),
        ("p.jsonl", '"a"', r"line 1 of .*p.jsonl must be an object such as"),
        ("p.jsonl", '{"messages": []}', r"line 1 of .*p.jsonl must be an object such as"),
        ("p.jsonl", '{"messages": [{"role": "user"}]}', r"line 1 of .*p.jsonl must be an object such as"),
        ("p.jsonl", '{"prompt": 3}', r"line 1 of .*p.jsonl must be an object such as"),
    ],
)
def test_broken_files(name: str, text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        read(tmp_path / name, text)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for path in ("nothing", "binary"):
        with pytest.raises(UserError, match=f"generate.prompts=.*{path} cannot be read"):
            read_prompts(GenerateConfig(prompts=str(tmp_path / path)))
