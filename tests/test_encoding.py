"""Text tokenised in several processes: the same tokens, and what was done is not done again."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.sentences import sentences
from trainer.config.schema import TokenizeConfig
from trainer.data import pieces
from trainer.data.encoding import key_of, tokenise
from trainer.data.pieces import TextSource
from trainer.data.tokenizer import build_tokenizer
from trainer.data.tokens import describe
from trainer.errors import UserError
from trainer.tokenize.vocabulary import train_vocabulary


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "text").write_text(sentences(20_000))
    config = TokenizeConfig(train=str(folder / "tokenizer.json"), size=400)
    train_vocabulary([TextSource(str(folder / "text"))], config)
    return str(folder / "tokenizer.json")


def tokens(cache: Path, text: TextSource, tokenizer: str) -> NDArray[np.uint16]:
    key = key_of(text, text.find(), build_tokenizer(tokenizer))
    assert describe(cache, key) is not None
    return np.fromfile(cache / f"{key}.tokens", "<u2")


def test_processes_give_the_tokens_of_one(
    tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when one run ends in the middle: the next takes what is there."""
    monkeypatch.setattr(pieces, "PIECE", 8_000)
    lines = [json.dumps({"text": line}) + "\n" for line in sentences(60_000).splitlines()]
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(lines))
    text = TextSource(str(path))
    assert tokenise(text, tokenizer, tmp_path / "one", workers=1)[1] is False
    whole = tokens(tmp_path / "one", text, tokenizer)
    end = build_tokenizer(tokenizer).end
    assert (whole == end).sum() == len(lines)

    content, status = path.read_bytes(), path.stat()
    broken = bytearray(content)
    broken[-3] = ord("\\")  # in the last piece
    path.write_bytes(broken)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(UserError, match=rf"line {len(lines)}: is no JSON"):
        tokenise(text, tokenizer, tmp_path / "two", workers=2)
    done = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "two").glob("*.parts/*.json")}
    assert len(done) >= 4

    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    reports: list[tuple[int, int]] = []
    tokenise(text, tokenizer, tmp_path / "two", workers=2, report=lambda *numbers: reports.append(numbers))
    assert np.array_equal(tokens(tmp_path / "two", text, tokenizer), whole)
    assert len(reports) == len(list(range(0, len(content), 8_000))) - len(done)  # the rest
    assert reports[-1][0] == reports[-1][1]
    assert not list((tmp_path / "two").glob("*.parts"))
    assert tokenise(text, tokenizer, tmp_path / "two")[1] is True


def test_a_document_ends_once_however_it_is_cut(
    tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "PIECE", 3_000)
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(sentences(20_000))
    text = TextSource(str(tmp_path), "*.txt")
    tokenise(text, tokenizer, tmp_path / "cache", workers=1)
    found = tokens(tmp_path / "cache", text, tokenizer)
    built = build_tokenizer(tokenizer)
    assert built.decode(found.tolist()) == 2 * (sentences(20_000) + "<|endoftext|>")
