"""Sources of text, cut into pieces that can be tokenised apart from one another.

A piece is about 16 MiB of text: many small files, or a range of a large one that ends at the end of a line.
The pieces depend on the source alone. So the tokens are the same whether one process makes them or many.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from trainer.config.schema import TextConfig
from trainer.data.files import Source, TextFile, find_text
from trainer.data.formats import cut_lines, format_of, lines, rows, units
from trainer.data.reading import ReadableFile, is_compressed, text_files

PIECE = 16 << 20  # bytes
_CHARACTERS = 1 << 16  # of a chunk
_BLOCK = 1 << 20  # bytes


@dataclass(frozen=True)
class Segment:
    """A part of one file.

    Attributes:
        file: The file.
        kind: Its format; see `trainer.data.formats`.
        field: Where the text is, in formats with fields.
        start: The first byte of text and of lines, the first row group, or the first row.
        stop: Where it ends; None: at the end of the file.
        weight: About how many bytes.
        ends: Whether a file of text ends with it, which is a document.
    """

    file: TextFile
    kind: str
    field: str
    start: int
    stop: int | None
    weight: int
    ends: bool = True

    def blocks(self, wrong: dict[str, int]) -> Iterator[bytes]:
        """Yield the bytes of the text; each document of a file with many ends in a newline.

        Args:
            wrong: Where to note, by path, the first byte that is not UTF-8.
        """
        if self.kind != "text":
            for document in self._documents(wrong):
                yield f"{document}\n".encode(errors="replace")
            return
        file = self._readable()
        with file.open("rb") as stream:
            yield from iter(partial(stream.read, _BLOCK), b"")
        self._done(file, wrong)

    def chunks(self, wrong: dict[str, int]) -> Iterator[tuple[str, bool]]:
        """Yield the text in chunks, and whether a document ends with each.

        A chunk ends at the end of a line, unless a line is longer than a chunk. So no token spans two of
        them, and memory does not grow with the file.

        Args:
            wrong: As of `blocks`.
        """
        if self.kind != "text":
            for document in self._documents(wrong):
                yield from _chunks(io.StringIO(document, newline=""), ends=True)
            return
        file = self._readable()
        stream = io.TextIOWrapper(file.open("rb"), encoding="utf-8", errors="replace", newline="")
        with stream:
            yield from _chunks(stream, ends=self.ends)
        self._done(file, wrong)

    def _documents(self, wrong: dict[str, int]) -> Iterator[str]:
        if self.kind == "jsonl":
            file = self._readable()
            yield from lines(file, self.field)
            self._done(file, wrong)
        else:
            assert self.stop is not None
            yield from rows(self.file.path, self.kind, self.field, self.start, self.stop)

    def _readable(self) -> ReadableFile:
        return ReadableFile(self.file, self.start, self.stop)

    @staticmethod
    def _done(file: ReadableFile, wrong: dict[str, int]) -> None:
        """Check that the file is as it was, and note what was wrong with it."""
        file.check_unchanged()
        if file.wrong_byte is not None:
            wrong.setdefault(str(file.path), file.wrong_byte)


Piece = tuple[Segment, ...]


def _chunks(stream: io.TextIOBase, *, ends: bool) -> Iterator[tuple[str, bool]]:
    chunk = _chunk(stream)
    while chunk:
        following = _chunk(stream)
        yield chunk, ends and not following
        chunk = following


def _chunk(stream: io.TextIOBase) -> str:
    text = stream.read(_CHARACTERS)
    return text + stream.readline(_CHARACTERS) if text else ""


@dataclass(frozen=True)
class TextSource:
    """Where text comes from, as configured.

    Attributes:
        path: A file or a folder; None: the source of Python's standard library.
        pattern: Which files of a folder to read.
        format: The files' format, or "auto".
        field: Where the text is, in formats with fields.
    """

    path: str | None
    pattern: str = "*"
    format: str = "auto"
    field: str = "text"

    @classmethod
    def of(cls, config: TextConfig) -> "TextSource":
        """Return the source of data that is not a mixture."""
        return cls(config.path, config.pattern, config.format, config.field)

    def find(self) -> Source:
        """Return the source's files."""
        return find_text(self.path, self.pattern)


def cut(text: TextSource, source: Source, *, any_bytes: bool) -> tuple[list[Piece], list[str]]:
    """Return the pieces of a source in order, and notes on what was left out.

    Args:
        text: What is read.
        source: Its files.
        any_bytes: As of `trainer.data.reading.text_files`.

    Raises:
        UserError: There is no text, it cannot be read, or a library is missing.
    """
    if text.path is not None and format_of(source.root, text.format) == "dataset":
        info = TextFile(source.root, source.root.name, source.size, 0)
        return _pieces(_by_units(info, "dataset", text.field)), []
    kinds = {file: format_of(file.path, text.format) for file in source.files}
    files = [file for file in source.files if kinds[file] != "text"]
    if files:
        left_out = len(source.files) - len(files)
        names = " and ".join(sorted({kinds[file] for file in files}))
        note = (
            f"{source.title}: {left_out} of {len(source.files)} files left out, which are not {names}; "
            "data.pattern chooses files"
        )
        notes = [note] if left_out else []
    else:
        files, notes = text_files(source, any_bytes=any_bytes)
    return _pieces([segment for file in files for segment in _cut_file(file, kinds[file], text)]), notes


def _cut_file(file: TextFile, kind: str, text: TextSource) -> list[Segment]:
    if kind == "parquet":
        return _by_units(file, kind, text.field)
    if file.size <= PIECE or is_compressed(file.path):
        return [Segment(file, kind, text.field, 0, None, file.size)]
    ranges = cut_lines(file.path, file.size, PIECE)
    return [
        Segment(file, kind, text.field, start, stop, stop - start, ends=stop == file.size)
        for start, stop in ranges
    ]


def _by_units(file: TextFile, kind: str, field: str) -> list[Segment]:
    """Return segments of a file that is cut by row groups or rows."""
    count, size = units(file.path, kind)
    every = max(1, count * PIECE // max(size, 1))
    starts = range(0, count, every)
    return [
        Segment(
            file, kind, field, start, min(start + every, count), size * min(every, count - start) // count
        )
        for start in starts
    ]


def _pieces(segments: list[Segment]) -> list[Piece]:
    """Return the segments, small ones joined."""
    pieces: list[Piece] = []
    joined: list[Segment] = []
    weight = 0
    for segment in segments:
        if joined and weight + segment.weight > PIECE:
            pieces.append(tuple(joined))
            joined, weight = [], 0
        joined.append(segment)
        weight += segment.weight
    return [*pieces, tuple(joined)] if joined else pieces


def format_names(source: Source, text: TextSource) -> list[str]:
    """Return the formats of a source's files, for a digest of what is read."""
    if text.path is None:
        return []
    if format_of(source.root, text.format) == "dataset":
        return ["dataset", text.field]
    found = {format_of(Path(file.path), text.format) for file in source.files} - {"text"}
    return [*sorted(found), text.field] if found else []
