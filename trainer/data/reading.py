"""Reads files of text: decompresses them, leaves out what is no text, and notices what is wrong with them.

Whether a file is text is seen in its first bytes, not in its name. In order:

[1] gzip, bzip2 and xz are read through; what is compressed otherwise, or holds several files, is left out
[2] UTF-16 and UTF-32 are refused: their bytes are no text for a tokenizer, and to guess would be worse
[3] images and other binary files are left out, and counted in a note
[4] the rest is text; the first byte that is not UTF-8 is noted
"""

import bz2
import codecs
import gzip
import io
import lzma
import mimetypes
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from trainer.data.files import Source, TextFile
from trainer.errors import UserError

_OPENERS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
_OTHER_FORMATS = (
    *(b"\x28\xb5\x2f\xfd", b"PK\x03\x04", b"7z\xbc\xaf", b"Rar!", b"\x04\x22\x4d\x18"),  # compressed
    *(
        b"\x89PNG",
        b"\xff\xd8\xff",
        b"GIF8",
        b"II*\x00",
        b"MM\x00*",
        b"RIFF",
        b"OggS",
        b"ID3",
        b"fLaC",
    ),  # media
    *(
        b"%PDF-",
        b"\xd0\xcf\x11\xe0",
        b"\x7fELF",
        b"SQLite format 3",
        b"PAR1",
        b"ARROW1",
        b"Obj\x01",
        b"\x93NUMPY",
    ),
)
_BOMS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_LOOK = 1 << 16  # bytes
_TAR = slice(257, 262)
_CONTROLS = bytes(set(range(32)) - set(b"\t\n\r\f\v\b\x1b"))  # hardly in text
_MOST_CONTROLS = 0.1
_BROKEN = (OSError, EOFError, zlib.error, lzma.LZMAError)


class ReadableFile:
    """A file of text, or a range of one, with the method `open` of a path.

    Args:
        file: The file.
        start: The first byte.
        stop: The byte after the last; None: the end. Files that are compressed are read as a whole.

    Attributes:
        path: Its path.
        start: The first byte.
        wrong_byte: The position of the first byte that is not UTF-8, once it was read; None if there is none.
    """

    def __init__(self, file: TextFile, start: int = 0, stop: int | None = None) -> None:
        self.path = file.path
        self.start = start
        self.stop = stop
        self.wrong_byte: int | None = None
        self._file = file

    def open(self, mode: str = "rb") -> IO[bytes]:
        """Return a stream of its text's bytes."""
        assert mode == "rb"
        return io.BufferedReader(_Watched(self))

    def check_unchanged(self) -> None:
        """Raise a UserError if the file is no longer what it was when it was found."""
        status = self.path.stat()
        if (status.st_size, status.st_mtime_ns) != (self._file.size, self._file.modified):
            raise UserError(
                f"{self.path} changed while it was read: run again when nothing writes it any more"
            )


class _Watched(io.RawIOBase):
    """The bytes of a file, decompressed; watches for what is not UTF-8."""

    def __init__(self, file: ReadableFile) -> None:
        self._file = file
        self._stream = _opened(file.path)
        if file.start:
            self._stream.seek(file.start)
        self._left = None if file.stop is None else file.stop - file.start
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._read = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(len(buffer) if self._left is None else min(len(buffer), self._left))
        except _BROKEN as error:
            raise UserError(f"{self._file.path} cannot be read after {self._read} bytes: {error}") from error
        buffer[: len(data)] = data
        if self._file.wrong_byte is None:
            self._watch(data)
        self._read += len(data)
        if self._left is not None:
            self._left -= len(data)
        return len(data)

    def _watch(self, data: bytes) -> None:
        pending = len(self._decoder.getstate()[0])
        try:
            self._decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            self._file.wrong_byte = self._file.start + self._read - pending + error.start

    def close(self) -> None:
        self._stream.close()
        super().close()


def text_files(source: Source, *, any_bytes: bool) -> tuple[list[TextFile], list[str]]:
    """Return the files of a source that hold text, and notes on what was left out.

    Args:
        source: The source; none of its files is of another format.
        any_bytes: Whether a single file may hold any bytes, each of them a token; but not a known format.

    Raises:
        UserError: There is no text, or it is encoded in another way than UTF-8.
    """
    single = source.root.is_file()
    texts, left_out = [], []
    for file in source.files:
        problem = _problem(file.path, any_bytes=any_bytes and single)
        if problem is None:
            texts.append(file)
        else:
            left_out.append(f"{file.name} is {problem}")
    if not texts:
        what = left_out[0] + (f", and {len(left_out) - 1} more" if len(left_out) > 1 else "")
        raise UserError(
            f"{source.title} has no text: {what}; give files of text, or gzip, bzip2 or xz of them"
        )
    if any_bytes and single and _problem(source.root, any_bytes=False):
        return texts, [f"{source.title} is no text: each of its bytes is a token"]
    if not left_out:
        return texts, []
    return texts, [
        f"{source.title}: {len(left_out)} of {len(source.files)} files left out, which are no text "
        f"({left_out[0]}{', ...' if len(left_out) > 1 else ''}); data.pattern chooses files"
    ]


def encoding_note(wrong: Mapping[str, int], title: str, files: int, effect: str) -> list[str]:
    """Return a note on the files that turned out not to be UTF-8.

    Args:
        wrong: By path, the first byte that is not UTF-8.
        title: The title of their source.
        files: How many files there are.
        effect: What becomes of such bytes.
    """
    if not wrong:
        return []
    path, place = next(iter(wrong.items()))
    first = f"the first is {path}, at byte {place}"
    return [f"{title}: {len(wrong)} of {files} files are not UTF-8 ({first}): {effect}"]


def is_compressed(path: Path) -> bool:
    """Return whether a file's first bytes say that it is compressed."""
    with path.open("rb") as file:
        return file.read(6).startswith(tuple(_OPENERS))


def line_start(path: Path, place: int, size: int) -> int:
    """Return where the first line begins that does so at a byte or after it; the size if there is none."""
    if place == 0:
        return 0
    with path.open("rb") as stream:
        stream.seek(place - 1)
        while block := stream.readline(_LOOK):
            if block.endswith(b"\n"):
                return stream.tell()
    return size


def _opened(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        begin = file.read(6)
    opener: Any = next((opener for magic, opener in _OPENERS.items() if begin.startswith(magic)), open)
    stream: IO[bytes] = opener(path, "rb")
    return stream


def _problem(path: Path, *, any_bytes: bool) -> str | None:
    """Return why a file is no text; None if it is text.

    Raises:
        UserError: It is text in another encoding, or damaged.
    """
    try:
        with _opened(path) as stream:
            begin = stream.read(_LOOK)
    except _BROKEN as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if begin.startswith(_OTHER_FORMATS) or begin[_TAR] == b"ustar":
        return "a binary file or an archive"
    for mark, encoding in _BOMS.items():
        if begin.startswith(mark):
            raise UserError(
                f"{path} is encoded in {encoding}, as its first bytes, {mark.hex(' ')}, say: make it UTF-8 "
                f"(iconv -f {encoding} -t UTF-8)"
            )
    kind = mimetypes.guess_type(path.name)[0] or "text"
    if not begin or (any_bytes and kind.startswith("text")):
        return None
    controls = len(begin) - len(begin.translate(None, _CONTROLS))
    binary = b"\0" in begin or controls > _MOST_CONTROLS * len(begin)
    return "a binary file" if binary else None
