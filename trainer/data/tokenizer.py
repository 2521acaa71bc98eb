"""Tokenizers: raw bytes, or a file of the tokenizers library."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as Library
from tokenizers.decoders import ByteLevel

from trainer.data.dataset import Tokenizer
from trainer.errors import UserError

_MASKS = ("[MASK]", "<mask>")
_STARTS, _SEGMENT_ENDS, _PADDINGS = ("[CLS]", "<s>"), ("[SEP]", "</s>"), ("[PAD]", "<pad>")
_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")
_FILE, _SETTINGS = "tokenizer.json", "tokenizer_config.json"  # in a folder of Hugging Face's
_TOGETHER = 1 << 21  # characters that are encoded in parallel; about 100 MB while that runs


class Readable(Protocol):
    """A part of a text, such as `trainer.data.pieces.Segment`."""

    def blocks(self, wrong: dict[str, int]) -> Iterator[bytes]:
        """Yield its bytes; note in `wrong`, by path, the first byte that is not UTF-8."""

    def chunks(self, wrong: dict[str, int]) -> Iterator[tuple[str, bool]]:
        """Yield its text in chunks, and whether a document ends with each."""


class Marks(NamedTuple):
    """Tokens around text: where a sample starts, where each of its segments ends, and what fills it up."""

    start: int
    end: int
    padding: int


class FileTokenizer(Tokenizer, Protocol):
    """A tokenizer that also reads files of any size, piece by piece."""

    @property
    def digest(self) -> str:
        """Return a digest; tokenizers that give different tokens for the same text have different ones."""

    @property
    def mask(self) -> int | None:
        """Return the number of the token that masks others; None if there is none."""

    @property
    def end(self) -> int | None:
        """Return the number of the token that ends a document; None if there is none."""

    @property
    def marks(self) -> Marks | None:
        """Return the tokens around text; None if one is missing."""

    @property
    def invalid(self) -> str:
        """Return what becomes of bytes that are not UTF-8, in words."""

    def encode_all(self, parts: Iterable[Readable], wrong: dict[str, int]) -> Iterator[NDArray[Any]]:
        """Yield the tokens of one part of a text after another, in arrays of unsigned integers."""

    def encode_lines(self, lines: Sequence[bytes]) -> list[list[int]]:
        """Return the tokens of every line; a line is UTF-8, and ends as it does in its file."""


def build_tokenizer(name: str) -> FileTokenizer:
    """Return the tokenizer of `data.tokenizer`: bytes, or that of a tokenizers file, or of a model's folder.

    Raises:
        UserError: The file does not exist, or is not a file of the tokenizers library.
    """
    return ByteTokenizer() if name == "bytes" else LibraryTokenizer(Path(name))


class ByteTokenizer:
    """Every byte of the UTF-8 text is a token; the vocabulary is 256."""

    vocabulary = 256
    mask = 256  # beyond the vocabulary: no text has it, nor these
    marks = Marks(257, 258, 259)
    end = None
    digest = "bytes"
    invalid = "their bytes are tokens as they are"

    def encode(self, text: str) -> list[int]:
        """Return the bytes of the text."""
        return list(text.encode("utf-8", errors="replace"))

    def decode(self, tokens: list[int]) -> str:
        """Return the text of the bytes; invalid UTF-8 becomes U+FFFD."""
        return bytes(tokens).decode("utf-8", errors="replace")

    def count_bytes(self, tokens: list[int]) -> int:
        """Return the number of tokens."""
        return len(tokens)

    def encode_all(self, parts: Iterable[Readable], wrong: dict[str, int]) -> Iterator[NDArray[Any]]:
        """Yield the bytes of the parts, unchanged even if they are not UTF-8."""
        for part in parts:
            for block in part.blocks(wrong):
                yield np.frombuffer(block, dtype=np.uint8)

    def encode_lines(self, lines: Sequence[bytes]) -> list[list[int]]:
        """Return the bytes of every line."""
        return [list(line) for line in lines]


class LibraryTokenizer:
    """A tokenizer of Hugging Face's tokenizers library, from its JSON file, or a folder with that file.

    Attributes:
        digest: Of its content.
        vocabulary: The number of distinct tokens.
        mask: The token that masks others, or None.
        end: The token that ends a document, or None.
    """

    invalid = "such bytes are read as U+FFFD; convert the files to UTF-8 to keep them"

    def __init__(self, path: Path) -> None:
        folder = path if path.is_dir() else path.parent
        path = path / _FILE if path.is_dir() else path
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(
                f"data.tokenizer={path} cannot be read ({error.strerror}): "
                'give "bytes", or the path of a tokenizers file, or a folder with a tokenizer.json'
            ) from error
        try:
            self._library = Library.from_buffer(content)
        except Exception as error:  # the library raises ValueError, or a bare Exception from Rust
            raise UserError(
                f"data.tokenizer={path} is not a file of the tokenizers library: {error}"
            ) from error
        # A file may enable both; either would change the text.
        self._library.no_truncation()
        self._library.no_padding()
        # Token numbers may have gaps, so the size of the vocabulary is not enough.
        self.vocabulary = 1 + max(self._library.get_vocab(with_added_tokens=True).values(), default=-1)
        if self.vocabulary == 0:
            raise UserError(f"data.tokenizer={path} has no tokens: train it first")
        self._special = {token.content for token in self._library.get_added_tokens_decoder().values()}
        self.mask = self._first_of(_MASKS)
        marks = [self._first_of(names) for names in (_STARTS, _SEGMENT_ENDS, _PADDINGS)]
        self.marks = None if None in marks else Marks(*marks)  # type: ignore[arg-type]
        named = _named_end(folder) if path.name == _FILE else None
        self.end = self._first_of([named] if named else _ENDS)
        self.digest = hashlib.sha256(content + f"end {self.end}".encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Return the tokens of the text, without adding special tokens."""
        return list(self._library.encode(text, add_special_tokens=False).ids)

    def decode(self, tokens: list[int]) -> str:
        """Return the text of the tokens, special ones included."""
        return str(self._library.decode(tokens, skip_special_tokens=False))

    def count_bytes(self, tokens: list[int]) -> int:
        """Return the number of bytes of the tokens' text.

        A token of a byte-level vocabulary writes each byte as one character, so tokens that begin or end
        within a character are counted right. Other vocabularies have no such tokens.
        """
        if isinstance(self._library.decoder, ByteLevel):
            names = (self._library.id_to_token(token) or "" for token in tokens)
            return sum(len(name.encode()) if name in self._special else len(name) for name in names)
        return len(self.decode(tokens).encode())

    def encode_all(self, parts: Iterable[Readable], wrong: dict[str, int]) -> Iterator[NDArray[Any]]:
        """Yield the tokens of the parts' text, with a token after each document, if there is one for that.

        Invalid UTF-8 is read as U+FFFD. No token spans two chunks.
        """
        chunks = (chunk for part in parts for chunk in part.chunks(wrong))
        while batch := _batch(chunks):
            encoded = self._library.encode_batch_fast([text for text, _ in batch], add_special_tokens=False)
            for encoding, (_, ends) in zip(encoded, batch, strict=True):
                closing = [self.end] if ends and self.end is not None else []
                yield np.array([*encoding.ids, *closing], dtype=np.uint32)

    def encode_lines(self, lines: Sequence[bytes]) -> list[list[int]]:
        """Return the tokens of every line; what is not UTF-8 is read as U+FFFD."""
        texts = [line.decode("utf-8", errors="replace") for line in lines]
        return [encoding.ids for encoding in self._library.encode_batch_fast(texts, add_special_tokens=False)]

    def _first_of(self, names: Sequence[str]) -> int | None:
        """Return the number of the first of some tokens that there is."""
        found = (self._library.token_to_id(name) for name in names)
        return next((number for number in found if number is not None), None)


def _batch(chunks: Iterator[tuple[str, bool]]) -> list[tuple[str, bool]]:
    """Return the next chunks, about `_TOGETHER` characters."""
    batch: list[tuple[str, bool]] = []
    size = 0
    for chunk in chunks:
        batch.append(chunk)
        size += len(chunk[0])
        if size >= _TOGETHER:
            break
    return batch


def _named_end(folder: Path) -> str | None:
    """Return what the settings beside a tokenizer call the end of a text."""
    try:
        settings = json.loads((folder / _SETTINGS).read_text())
        name = settings.get("eos_token")
    except (OSError, ValueError, AttributeError):
        return None
    name = name.get("content") if isinstance(name, dict) else name
    return name if isinstance(name, str) else None
