"""Tokenizers: raw bytes, or a file of the tokenizers library."""

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as Library
from tokenizers.decoders import ByteLevel

from trainer.data.dataset import Tokenizer
from trainer.errors import UserError

_BYTES_PER_READ = 1 << 20
_CHARACTERS_PER_CHUNK = 1 << 16
_MASKS = ("[MASK]", "<mask>")
_STARTS, _ENDS, _PADDINGS = ("[CLS]", "<s>"), ("[SEP]", "</s>"), ("[PAD]", "<pad>")
_CHUNKS_PER_BATCH = 32  # encoded in parallel; about 100 MB while that runs


class Openable(Protocol):
    """A file, such as a path."""

    def open(self, mode: Literal["rb"]) -> IO[bytes]:
        """Return a stream of its bytes."""


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
    def marks(self) -> Marks | None:
        """Return the tokens around text; None if one is missing."""

    @property
    def invalid(self) -> str:
        """Return what becomes of bytes that are not UTF-8, in words."""

    def encode_files(self, files: Iterable[Openable]) -> Iterator[NDArray[Any]]:
        """Yield the tokens of one file after another, in arrays of unsigned integers."""

    def encode_lines(self, lines: Sequence[bytes]) -> list[list[int]]:
        """Return the tokens of every line; a line is UTF-8, and ends as it does in its file."""


def build_tokenizer(name: str) -> FileTokenizer:
    """Return the tokenizer of `data.tokenizer`: "bytes", or the path of a tokenizers file.

    Raises:
        UserError: The file does not exist, or is not a file of the tokenizers library.
    """
    return ByteTokenizer() if name == "bytes" else LibraryTokenizer(Path(name))


class ByteTokenizer:
    """Every byte of the UTF-8 text is a token; the vocabulary is 256."""

    vocabulary = 256
    mask = 256  # beyond the vocabulary: no text has it, nor these
    marks = Marks(257, 258, 259)
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

    def encode_files(self, files: Iterable[Openable]) -> Iterator[NDArray[Any]]:
        """Yield the bytes of the files, unchanged even if they are not UTF-8."""
        for file in files:
            with file.open("rb") as stream:
                while block := stream.read(_BYTES_PER_READ):
                    yield np.frombuffer(block, dtype=np.uint8)

    def encode_lines(self, lines: Sequence[bytes]) -> list[list[int]]:
        """Return the bytes of every line."""
        return [list(line) for line in lines]


class LibraryTokenizer:
    """A tokenizer of Hugging Face's tokenizers library, from its JSON file."""

    invalid = "such bytes are read as U+FFFD; convert the files to UTF-8 to keep them"

    def __init__(self, path: Path) -> None:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(
                f"data.tokenizer={path} cannot be read ({error.strerror}): "
                'give "bytes" or the path of a tokenizers file'
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
        self.digest = hashlib.sha256(content).hexdigest()
        # Token numbers may have gaps, so the size of the vocabulary is not enough.
        self.vocabulary = 1 + max(self._library.get_vocab(with_added_tokens=True).values(), default=-1)
        if self.vocabulary == 0:
            raise UserError(f"data.tokenizer={path} has no tokens: train it first")
        self._special = {token.content for token in self._library.get_added_tokens_decoder().values()}
        self.mask = self._first_of(_MASKS)
        marks = [self._first_of(names) for names in (_STARTS, _ENDS, _PADDINGS)]
        self.marks = None if None in marks else Marks(*marks)  # type: ignore[arg-type]

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

    def encode_files(self, files: Iterable[Openable]) -> Iterator[NDArray[Any]]:
        """Yield the tokens of the files' text; invalid UTF-8 is read as U+FFFD.

        Long files are split into chunks at line ends (within a line only if it is longer than a chunk). So
        no token spans two chunks, and memory does not grow with the file.
        """
        chunks = (chunk for file in files for chunk in _chunks(file))
        while batch := list(islice(chunks, _CHUNKS_PER_BATCH)):
            for encoding in self._library.encode_batch_fast(batch, add_special_tokens=False):
                yield np.array(encoding.ids, dtype=np.uint32)

    def encode_lines(self, lines: Sequence[bytes]) -> list[list[int]]:
        """Return the tokens of every line; what is not UTF-8 is read as U+FFFD."""
        texts = [line.decode("utf-8", errors="replace") for line in lines]
        return [encoding.ids for encoding in self._library.encode_batch_fast(texts, add_special_tokens=False)]

    def _first_of(self, names: Sequence[str]) -> int | None:
        """Return the number of the first of some tokens that there is."""
        found = (self._library.token_to_id(name) for name in names)
        return next((number for number in found if number is not None), None)


def _chunks(file: Openable) -> Iterator[str]:
    """Yield the file's text in chunks that end at a line end, unless a line is longer than a chunk."""
    with io.TextIOWrapper(file.open("rb"), encoding="utf-8", errors="replace", newline="") as stream:
        while chunk := stream.read(_CHARACTERS_PER_CHUNK):
            yield chunk + stream.readline(_CHARACTERS_PER_CHUNK)
