"""Text to token files: piece by piece, in this process or in several.

Each piece becomes a file of its own in `<key>.parts`, written under another name and then renamed; when all
are there, they are joined in order. So what was done before an interruption is not done again, and memory
does not grow with the text. Runs that want the same tokens at the same time wait for one another.
"""

import contextlib
import fcntl
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.data.files import Source
from trainer.data.pieces import Piece, TextSource, cut, format_names
from trainer.data.reading import encoding_note
from trainer.data.tokenizer import FileTokenizer, build_tokenizer
from trainer.data.tokens import (
    Description,
    describe,
    dtype_of,
    prepare_cache,
    token_key,
    write_atomically,
    write_tokens,
)
from trainer.distributed import environment
from trainer.distributed.workers import Answer, Worker, ready
from trainer.errors import UserError

Report = Callable[[int, int], None]  # called with how many bytes of text are done, and of how many

_FEW = 32 << 20  # bytes of text, up to which starting processes is not worth it
_BLOCK = 1 << 22  # tokens
_SERVE = "trainer.data.encoding:serve"
_log = logging.getLogger(__name__)


def key_of(text: TextSource, source: Source, tokenizer: FileTokenizer) -> str:
    """Return the name of the tokens of a source."""
    return token_key(source, tokenizer.digest, format_names(source, text))


def tokenise(
    text: TextSource,
    tokenizer: str,
    cache: Path,
    workers: int | None = None,
    report: Report = lambda _done, _of: None,
) -> tuple[Description, bool]:
    """Tokenise a source, unless the cache has its tokens; return what it has, and whether it had it before.

    Args:
        text: The source.
        tokenizer: `data.tokenizer`.
        cache: The folder of the token files.
        workers: How many processes; None: as many as there are cores, or none for a little text.
        report: Called whenever a piece is done.

    Raises:
        UserError: The text or the tokenizer cannot be read, or the cache cannot be written.
    """
    built = build_tokenizer(tokenizer)
    source = text.find()
    key = key_of(text, source, built)
    if (known := describe(cache, key)) is not None:
        return known, True
    prepare_cache(cache)
    with _alone(cache / f".{key}.lock"):
        known = describe(cache, key)  # another run may just have written it
        if known is not None:
            return known, True
        _log.info("Tokenising %s (%d files, %.1f MB)", source.title, len(source.files), source.size / 1e6)
        pieces, notes = cut(text, source, any_bytes=tokenizer == "bytes")
        setting = _Setting(tokenizer, cache / f"{key}.parts", tuple(pieces))
        try:
            return _write(setting, source, built, cache, key, notes, workers, report), False
        except OSError as error:
            raise UserError(
                f"the tokens of {source.title} cannot be written to data.cache={cache}: {error}"
            ) from error


def _write(  # noqa: PLR0917
    setting: "_Setting",
    source: Source,
    tokenizer: FileTokenizer,
    cache: Path,
    key: str,
    notes: Sequence[str],
    workers: int | None,
    report: Report,
) -> Description:
    wrong: dict[str, int] = {}

    def all_notes() -> list[str]:
        return [*notes, *encoding_note(wrong, source.title, len(source.files), tokenizer.invalid)]

    arrays = _encode(setting, tokenizer, wrong, workers, report)
    description = write_tokens(cache, key, arrays, tokenizer.vocabulary, all_notes)
    shutil.rmtree(setting.folder, ignore_errors=True)
    return description


def _encode(
    setting: "_Setting", tokenizer: FileTokenizer, wrong: dict[str, int], workers: int | None, report: Report
) -> Iterator[NDArray[Any]]:
    """Yield the tokens of all pieces in order, made here if there is little text, else in processes."""
    pieces = setting.pieces
    total = sum(segment.weight for piece in pieces for segment in piece)
    if total <= _FEW and workers in (None, 1):
        yield from _encode_here(tokenizer, pieces, wrong, report)
        return
    setting.folder.mkdir(exist_ok=True)
    _encode_apart(setting, min(workers or environment.cores(), len(pieces)), report)
    yield from _joined(setting.folder, len(pieces), dtype_of(tokenizer.vocabulary), wrong)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other process is in here with the same file, where the file system has locks.

    Where it has none, several processes write the same.
    """
    while True:
        with path.open("w") as file:
            with contextlib.suppress(OSError):
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    _log.info("another run tokenises the same text; waiting for it")
                    fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_at(path, file.fileno()):  # removed by the one that was waited for
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return path.stat().st_ino == os.fstat(descriptor).st_ino
    except FileNotFoundError:
        return False


def _encode_here(
    tokenizer: FileTokenizer, pieces: Sequence[Piece], wrong: dict[str, int], report: Report
) -> Iterator[NDArray[Any]]:
    total = sum(segment.weight for piece in pieces for segment in piece)
    done = 0
    for piece in pieces:
        yield from tokenizer.encode_all(piece, wrong)
        done += sum(segment.weight for segment in piece)
        report(done, total)


@dataclass(frozen=True)
class _Setting:
    """What a worker needs to tokenise pieces into files."""

    tokenizer: str
    folder: Path
    pieces: tuple[Piece, ...]


def _encode_apart(setting: _Setting, count: int, report: Report) -> None:
    """Tokenise every piece that has no file yet, in processes."""
    weights = [sum(segment.weight for segment in piece) for piece in setting.pieces]
    left = [number for number in range(len(weights)) if not _marker(setting.folder, number).is_file()]
    done, total = sum(weights) - sum(weights[number] for number in left), sum(weights)
    if not left:
        return
    left.reverse()
    workers = [
        Worker(_SERVE, setting, title=f"tokenising process {i + 1}") for i in range(min(count, len(left)))
    ]
    try:
        busy = list(workers)
        for worker in busy:
            worker.ask(left.pop())
        while busy:
            for worker in ready(busy):
                done += weights[worker.answer()]
                report(done, total)
                if left:
                    worker.ask(left.pop())
                else:
                    busy.remove(worker)
    finally:
        for worker in workers:
            worker.end()


def serve(setting: _Setting) -> Answer:
    """Return what tokenises a piece into its file, by the piece's number."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread: there is a process for every core
    tokenizer = build_tokenizer(setting.tokenizer)
    dtype = dtype_of(tokenizer.vocabulary)

    def answer(number: int) -> Iterator[int]:
        wrong: dict[str, int] = {}
        arrays = tokenizer.encode_all(setting.pieces[number], wrong)
        marker = _marker(setting.folder, number)
        write_atomically(
            marker.with_suffix(".tokens"),
            lambda stream: [stream.write(array.astype(dtype, copy=False).tobytes()) for array in arrays],
        )
        # The marker is written last: if it exists, the tokens are complete.
        write_atomically(marker, lambda stream: stream.write(json.dumps(wrong).encode()))
        yield number

    return answer


def _marker(folder: Path, number: int) -> Path:
    return folder / f"{number}.json"


def _joined(folder: Path, count: int, dtype: np.dtype[Any], wrong: dict[str, int]) -> Iterator[NDArray[Any]]:
    """Yield the tokens of all pieces in order."""
    for number in range(count):
        marker = _marker(folder, number)
        try:
            found: dict[str, int] = json.loads(marker.read_text())
            with marker.with_suffix(".tokens").open("rb") as stream:
                while (block := np.fromfile(stream, dtype, _BLOCK)).size:
                    yield block
        except (OSError, ValueError) as error:
            raise UserError(
                f"the tokens of a part of the text cannot be read ({error}): run again"
            ) from error
        for path, place in found.items():
            wrong.setdefault(path, place)
