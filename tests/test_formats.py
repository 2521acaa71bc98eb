"""JSON lines, Parquet and saved data sets: their documents, in order, and one message for what is wrong."""

import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from trainer.config.schema import TextConfig
from trainer.data import pieces
from trainer.data.build import load_data
from trainer.data.pieces import TextSource, cut
from trainer.errors import UserError

pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
parquet = pytest.importorskip("pyarrow.parquet")

DOCUMENTS = [f"document {number}\nsecond line {'x' * number}" for number in range(40)]


def jsonl(path: Path, field: str = "text") -> Path:
    lines = "".join(json.dumps({field: document, "id": 1}) + "\n" for document in DOCUMENTS)
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt") as stream:
        stream.write(lines + "\n" + json.dumps({field: None}) + "\n")
    return path


def table(path: Path, field: str = "text") -> Path:
    content = pyarrow.table({field: [*DOCUMENTS, None], "n": range(len(DOCUMENTS) + 1)})
    parquet.write_table(content, path, row_group_size=7)
    return path


def saved(path: Path, field: str = "text") -> Path:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    whole = datasets.Dataset.from_dict({field: ["not this one", *DOCUMENTS]})
    whole.select(range(1, len(DOCUMENTS) + 1)).save_to_disk(path)
    return path


MAKERS = {"lines.jsonl": jsonl, "lines.jsonl.gz": jsonl, "table.parquet": table, "saved": saved}


def documents(text: TextSource) -> list[str]:
    found, current = [], ""
    for piece in cut(text, text.find(), any_bytes=True)[0]:
        for segment in piece:
            for chunk, ends in segment.chunks({}):
                current += chunk
                if ends:
                    found.append(current)
                    current = ""
    assert not current
    return found


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("size", [300, 1 << 20])
def test_documents_come_whole_and_in_order(
    name: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "PIECE", size)
    path = MAKERS[name](tmp_path / name, "body")
    text = TextSource(str(path), field="body")
    assert documents(text) == DOCUMENTS
    several = len(cut(text, text.find(), any_bytes=True)[0]) > 1
    assert several == (size == 300 and not name.endswith(".gz"))


def test_large_files_are_cut_at_ends_of_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE", 100)
    content = "".join(f"{'a' * (number * 7 % 130)}\n" for number in range(50))
    (tmp_path / "text").write_text(content)
    (tmp_path / "tail").write_text("no end of line")
    text = TextSource(str(tmp_path))
    made, _ = cut(text, text.find(), any_bytes=True)
    assert len(made) > 15
    parts = [b"".join(segment.blocks({})) for piece in made for segment in piece]
    assert b"".join(parts).decode() == "no end of line" + content
    assert all(part.endswith(b"\n") for part in parts[1:])
    assert documents(text) == ["no end of line", content]


def test_a_line_longer_than_a_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE", 100)
    content = f"short\n{'long ' * 100}\nshort\nshort\n"
    (tmp_path / "text").write_text(content)
    text = TextSource(str(tmp_path / "text"))
    made, _ = cut(text, text.find(), any_bytes=True)
    assert [segment.start for piece in made for segment in piece] == [0, 507]
    assert documents(text) == [content]


def test_documents_end_in_a_token_or_a_newline(tmp_path: Path) -> None:
    jsonl(tmp_path / "lines.jsonl")
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False
    )
    library.train_from_iterator(DOCUMENTS, trainer)
    library.save(str(tmp_path / "tokenizer.json"))

    def text(tokenizer: str) -> str:
        cache = tmp_path / "cache" / Path(tokenizer).name
        config = TextConfig(
            path=str(tmp_path / "lines.jsonl"),
            tokenizer=tokenizer,
            cache=str(cache),
            context=1,
            validation=0.01,
        )
        data = load_data(config)
        assert data.tokenizer is not None
        import numpy as np  # noqa: PLC0415

        return data.tokenizer.decode(data.training.inputs(np.arange(len(data.training))).flatten().tolist())

    whole = "<|endoftext|>".join(DOCUMENTS)
    assert whole.startswith(text(str(tmp_path / "tokenizer.json"))[:600])
    assert "\n".join(DOCUMENTS).startswith(text("bytes")[:600])


def test_only_tables_are_read_where_there_are_some(tmp_path: Path) -> None:
    table(tmp_path / "b.parquet")
    (tmp_path / "README.md").write_text("# About")
    text = TextSource(str(tmp_path))
    assert documents(text) == DOCUMENTS
    (note,) = cut(text, text.find(), any_bytes=True)[1]
    assert "1 of 2 files left out, which are not parquet" in note


def test_a_format_by_name(tmp_path: Path) -> None:
    (tmp_path / "lines.jsonl").write_text("no JSON at all\n")
    assert documents(TextSource(str(tmp_path), format="text")) == ["no JSON at all\n"]


WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "broken": (
        lambda path: path.write_text('{"text": "a"}\n\n{"text": "b"\n'),
        r"broken\.jsonl, line 3: is no JSON .*; data\.format=text reads it as text",
    ),
    "missing": (
        lambda path: path.write_text('{"text": "a"}\n{"txt": "b"}\n'),
        r"missing\.jsonl, line 2: has no field 'text', but txt: give data\.field=\.\.\.; did you mean txt\?",
    ),
    "number": (
        lambda path: path.write_text('{"text": 5}\n'),
        r"number\.jsonl, line 1: the field 'text' must be text, not int",
    ),
    "list": (
        lambda path: path.write_text("[1]\n"),
        r"line 1: must be an object with the field 'text', not list",
    ),
    "column": (
        lambda path: table(path.with_suffix(".parquet"), "content"),
        r"column\.parquet has no column 'text', but content, n: give data\.field=",
    ),
    "type": (
        lambda path: parquet.write_table(pyarrow.table({"text": [1, 2]}), path.with_suffix(".parquet")),
        r"type\.parquet: the column 'text' must be text, not int",
    ),
    "garbage": (
        lambda path: path.with_suffix(".parquet").write_bytes(b"PAR1 and then nothing"),
        r"garbage\.parquet cannot be read as Parquet: ",
    ),
    "splits": (
        lambda path: (path.parent / "dataset_dict.json").write_text('{"splits": ["train", "test"]}'),
        r"holds the splits train, test of a data set: give one of them, such as data\.path=.*/train",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_one_message_for_what_is_wrong(name: str, tmp_path: Path) -> None:
    make, message = WRONG[name]
    make(tmp_path / f"{name}.jsonl")
    with pytest.raises(UserError, match=message):
        load_data(TextConfig(path=str(tmp_path), cache=str(tmp_path / ".cache"), context=1))


def test_the_line_is_counted_from_the_start_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "PIECE", 100)
    path = tmp_path / "lines.jsonl"
    path.write_text('{"text": "abc"}\n' * 49 + "{\n")
    with pytest.raises(UserError, match=r"lines\.jsonl, line 50: is no JSON"):
        load_data(TextConfig(path=str(path), cache=str(tmp_path / "cache"), context=1))


@pytest.mark.parametrize("library", ["pyarrow", "datasets"])
def test_a_missing_library(library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = table(tmp_path / "a.parquet") if library == "pyarrow" else saved(tmp_path / "saved")
    for name in list(sys.modules):
        if name.partition(".")[0] == library:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=f"needs the library {library}: pip install {library}"):
        load_data(TextConfig(path=str(path), cache=str(tmp_path / "cache"), context=1))
