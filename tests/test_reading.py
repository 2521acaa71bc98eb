"""Files of text: compressed ones are read, others left out or refused, and never taken for text."""

import bz2
import gzip
import json
import lzma
import os
import tarfile
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from trainer.config.schema import TextConfig
from trainer.data.build import load_data
from trainer.data.dataset import Data
from trainer.data.files import find_text
from trainer.data.pieces import Segment, TextSource, cut
from trainer.data.tokenizer import build_tokenizer
from trainer.errors import UserError

TEXT = b"The quick brown fox, and the lazy dog.\n" * 20
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))


def build(path: Path, tmp_path: Path, tokenizer: str = "bytes") -> Data:
    cache = str(tmp_path / "cache")
    return load_data(TextConfig(path=str(path), cache=cache, tokenizer=tokenizer, context=4, validation=0.3))


def tokens(tmp_path: Path) -> bytes:
    (file,) = (tmp_path / "cache").glob("*.tokens")
    return file.read_bytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "corpus"
    made.mkdir()
    return made


@pytest.fixture
def words(tmp_path: Path) -> str:
    """Return a file of the tokenizers library."""
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel()
    library.train_from_iterator([TEXT.decode()], trainers.BpeTrainer(vocab_size=300))
    library.save(str(tmp_path / "tokenizer.json"))
    return str(tmp_path / "tokenizer.json")


def tar() -> bytes:
    data = BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        entry = tarfile.TarInfo("a.txt")
        entry.size = len(TEXT)
        archive.addfile(entry, BytesIO(TEXT))
    return data.getvalue()


def zipped() -> bytes:
    data = BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("a.txt", TEXT)
    return data.getvalue()


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed_text_is_read(folder: Path, tmp_path: Path, compress: object) -> None:
    (folder / "a").write_bytes(compress(TEXT))  # type: ignore[operator]
    (folder / "b.txt").write_bytes(b"plain text\n")
    data = build(folder, tmp_path)
    assert tokens(tmp_path) == TEXT + b"plain text\n"
    assert data.notes == ()


OTHER = {
    "a.png": PNG,
    "a.zst": b"\x28\xb5\x2f\xfd\x04\x00 some",
    "a.zip": zipped(),
    "a.tar": tar(),
    "a.tar.gz": gzip.compress(tar()),
    "a.pdf": b"%PDF-1.7\n1 0 obj\n",
    "a.jpg": b"\xff\xd8\xff\xe0\x00\x10JFIF",
    "a.npy": b"\x93NUMPY\x01\x00v\x00{'descr': '<f4'}",
    "a.bin": bytes(range(1, 30)) * 40,
    "a.utf16": "no mark".encode("utf-16-le"),
    "png.gz": gzip.compress(PNG),
}


@pytest.mark.parametrize("name", OTHER)
def test_what_is_no_text_is_left_out_with_a_note(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / name).write_bytes(OTHER[name])
    (folder / "z.txt").write_bytes(TEXT)
    (folder / "empty").touch()
    for _ in range(2):  # from the cache too
        data = build(folder, tmp_path)
        (note,) = data.notes
        assert f"data.path={folder}: 1 of 3 files left out" in note
        assert f"{name} is a binary file" in note
    assert tokens(tmp_path) == TEXT


@pytest.mark.parametrize("name", [name for name in OTHER if name != "a.utf16"])
def test_a_single_file_that_is_no_text_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / name).write_bytes(OTHER[name])
    with pytest.raises(UserError, match=rf"data\.path=.*{name} has no text: {name} is a binary file"):
        build(folder / name, tmp_path)


def test_a_folder_without_text(folder: Path, tmp_path: Path) -> None:
    for number in range(3):
        (folder / f"{number}.png").write_bytes(PNG)
    with pytest.raises(UserError, match=r"has no text: 0\.png is a binary file or an archive, and 2 more"):
        build(folder, tmp_path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_other_encodings_are_refused(folder: Path, tmp_path: Path, encoding: str) -> None:
    (folder / "a.txt").write_text("text é", encoding=encoding)
    with pytest.raises(UserError, match=rf"a\.txt is encoded in {encoding.upper()}, .*: ff fe|iconv"):
        build(folder, tmp_path)


def test_other_encodings_are_refused_of_a_single_file_too(folder: Path, tmp_path: Path) -> None:
    (folder / "a.txt").write_text("text", encoding="utf-16")
    with pytest.raises(UserError, match=r"a\.txt is encoded in UTF-16"):
        build(folder / "a.txt", tmp_path)


def test_a_single_file_of_bytes_is_noted(folder: Path, tmp_path: Path) -> None:
    (folder / "a.txt").write_bytes("without a mark".encode("utf-16-le"))
    (note,) = build(folder / "a.txt", tmp_path).notes
    assert note == f"data.path={folder / 'a.txt'} is no text: each of its bytes is a token"


def test_bytes_that_are_not_utf8_are_noted(folder: Path, tmp_path: Path, words: str) -> None:
    (folder / "a.txt").write_bytes(TEXT)
    (folder / "b.txt").write_bytes(b"x" * 1_500_000 + "caf\xe9".encode("latin-1") + TEXT)
    (folder / "c.txt").write_bytes("é".encode() * 700_001)  # characters lie across reads
    (note,) = build(folder, tmp_path).notes
    assert "1 of 3 files are not UTF-8" in note
    assert f"the first is {folder / 'b.txt'}, at byte 1500003" in note
    assert note.endswith("their bytes are tokens as they are")
    assert build(folder, tmp_path, words).notes[0].endswith("convert the files to UTF-8 to keep them")


def test_text_that_ends_within_a_character(folder: Path, tmp_path: Path) -> None:
    (folder / "a.txt").write_bytes(TEXT + "é".encode()[:1])
    (note,) = build(folder, tmp_path).notes
    assert f"at byte {len(TEXT)}" in note


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: data[:40] + b"\0\0" + data[42:]])
def test_damaged_compression(folder: Path, tmp_path: Path, damage: object) -> None:
    data = gzip.compress(os.urandom(50_000).hex().encode())
    (folder / "a.gz").write_bytes(damage(data))  # type: ignore[operator]
    with pytest.raises(UserError, match=r"a\.gz cannot be read"):
        build(folder, tmp_path)


def test_a_file_that_changes_while_it_is_read(folder: Path) -> None:
    (folder / "a.txt").write_bytes(TEXT)
    (folder / "b.txt").write_bytes(TEXT)
    text = TextSource(str(folder))
    (piece,), _ = cut(text, text.find(), any_bytes=True)

    def reading() -> Iterator[Segment]:
        for segment in piece:
            yield segment
            if segment.file.name == "a.txt":
                with (folder / "b.txt").open("ab") as stream:
                    stream.write(b"more")

    with pytest.raises(UserError, match=r"b\.txt changed while it was read"):
        list(build_tokenizer("bytes").encode_all(reading(), {}))


def test_linked_folders_are_read_once(folder: Path, tmp_path: Path) -> None:
    for place in (folder / "inner", tmp_path / "scratch", tmp_path / "scratch" / "deep"):
        place.mkdir()
        (place / "text").write_bytes(f"{place.name} ".encode() * 10)
    (folder / "a link").symlink_to(tmp_path / "scratch")
    (folder / "again").symlink_to(folder / "inner")
    (folder / "z").symlink_to(tmp_path / "scratch" / "deep")
    (tmp_path / "scratch" / "cycle").symlink_to(folder)
    (folder / "dead").symlink_to("nowhere")
    (folder / "file").symlink_to(tmp_path / "scratch" / "text")
    source = find_text(str(folder), "*")
    assert [file.name for file in source.files] == ["a link/deep/text", "a link/text", "file", "inner/text"]
    assert source.notes == (f"data.path={folder}: 1 links lead nowhere, and were left out",)
    assert source.notes[0] in build(folder, tmp_path).notes


def test_a_linked_root(folder: Path, tmp_path: Path) -> None:
    (folder / "text").write_bytes(TEXT)
    (tmp_path / "link").symlink_to(folder)
    assert [file.name for file in find_text(str(tmp_path / "link"), "*").files] == ["text"]


def test_descriptions_of_before_they_had_notes(folder: Path, tmp_path: Path) -> None:
    (folder / "a").write_bytes(TEXT)
    build(folder, tmp_path)
    (file,) = (tmp_path / "cache").glob("*.json")
    content = json.loads(file.read_text())
    del content["notes"]
    file.write_text(json.dumps(content))
    assert build(folder, tmp_path).notes == ()


def test_a_home_that_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME", raising=False)
    with pytest.raises(UserError, match=r"data\.path=~nobody-knows/text (cannot be read|does not exist)"):
        find_text("~nobody-knows/text", "*")
