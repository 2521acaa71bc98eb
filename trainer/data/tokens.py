"""Token files: written once per node, then read by every rank through the page cache.

`<key>.tokens` holds the tokens, raw and little-endian, in the smallest of 8, 16 or 32 bits that holds the
vocabulary; `<key>.json` describes them. The description is written last: if it exists, the tokens are
complete.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from trainer.data.files import Source
from trainer.distributed.heartbeat import heartbeat
from trainer.errors import TrainingError, UserError

_TYPES = ("|u1", "<u2", "<u4")  # of tokens, the smallest first
_VERSION = 3  # increase it when the same text would give other tokens


@dataclass(frozen=True)
class Description:
    """The content of a token file.

    Attributes:
        tokens: The number of tokens.
        dtype: NumPy's name of a token's type, such as "<u2".
        digest: The SHA-256 of the tokens' bytes.
        notes: What a person should know about how they were read.
    """

    tokens: int
    dtype: str
    digest: str
    notes: Sequence[str] = ()


def token_key(source: Source, tokenizer_digest: str, formats: Sequence[str] = ()) -> str:
    """Return a name for the tokens of these files; it changes when a file, the tokenizer or a format does."""
    facts = [
        _VERSION,
        tokenizer_digest,
        *formats,
        os.fspath(source.root.resolve()),  # two files with equal name, size and time may still differ
        [(file.name, file.size, file.modified) for file in source.files],
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def prepare_cache(folder: Path) -> None:
    """Create the folder of the token files.

    Raises:
        UserError: It cannot be created or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"data.cache={folder} cannot be created: {error.strerror}") from error
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
        raise UserError(f"data.cache={folder} is not writable: give another folder")


def not_cached(what: str, folder: Path) -> UserError:
    """Return the error of a rank that does not find what one rank of its node has prepared."""
    return UserError(
        f"{what} are not in data.cache={folder}: the files that they come from have changed since, or the "
        "ranks of this node do not share the folder; run again"
    )


def describe(folder: Path, key: str) -> Description | None:
    """Return the description of the key's token file, or None if the file is missing or incomplete."""
    try:
        description = Description(**json.loads((folder / f"{key}.json").read_text()))
        size = (folder / f"{key}.tokens").stat().st_size
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    if description.dtype not in _TYPES or not isinstance(description.notes, list | tuple):
        return None
    return description if size == description.tokens * np.dtype(description.dtype).itemsize else None


def write_tokens(
    folder: Path,
    key: str,
    arrays: Iterable[NDArray[Any]],
    vocabulary: int,
    notes: Callable[[], Sequence[str]] = tuple,
) -> Description:
    """Write the token file and its description; another run may safely write them at the same time.

    Args:
        folder: The folder of the token files.
        key: The tokens' name.
        arrays: The tokens.
        vocabulary: The number of distinct tokens.
        notes: Returns the description's notes, when all tokens are written.
    """
    dtype = dtype_of(vocabulary)
    digest = hashlib.sha256()
    count = 0

    def write(stream: IO[bytes]) -> None:
        nonlocal count
        for array in arrays:
            block = array.astype(dtype, copy=False).tobytes()
            digest.update(block)
            stream.write(block)
            count += len(array)

    write_atomically(folder / f"{key}.tokens", write)
    description = Description(count, dtype.str, digest.hexdigest(), notes())
    content = json.dumps(asdict(description)).encode()
    write_atomically(folder / f"{key}.json", lambda stream: stream.write(content))
    return description


class MappedTokens:
    """The tokens of a file, or a range of them; the file is opened when tokens are first asked for.

    So a rank that reads no samples, of a stage in the middle, never opens it.

    Args:
        path: The file.
        dtype: NumPy's name of a token's type.
        start: The first token.
        stop: The token after the last.
    """

    def __init__(self, path: Path, dtype: str, start: int, stop: int) -> None:
        self._path = path
        self._dtype = dtype
        self._start = start
        self._stop = stop
        self._map: NDArray[Any] | None = None
        self._file: IO[bytes]

    def __len__(self) -> int:
        """Return the number of tokens."""
        return self._stop - self._start

    def part(self, start: int, stop: int) -> "MappedTokens":
        """Return a range of these tokens."""
        return MappedTokens(self._path, self._dtype, self._start + start, self._start + stop)

    def __getitem__(self, places: NDArray[np.int64] | slice) -> NDArray[Any]:
        """Return the tokens at some places, or a range of them that is not negative.

        Raises:
            TrainingError: The file has shrunk since it was opened.
        """
        if self._map is None:
            self._file = self._path.open("rb")
            self._map = np.asarray(np.memmap(self._file, dtype=self._dtype, mode="r"))
            heartbeat.describe(mapped={str(self._path): self._map.nbytes})
        size = os.fstat(self._file.fileno()).st_size  # to read what is gone would kill the process
        if size < self._map.nbytes:
            raise TrainingError(
                f"the token file {self._path} has {size:,} bytes now, and had {self._map.nbytes:,} when it "
                "was opened: another program changes it. Run again, with a data.cache that is this run's own"
            )
        found: NDArray[Any]
        if isinstance(places, slice):
            found = self._map[self._start : self._stop][places]
        else:
            found = self._map[places + self._start]
        return found

    def all(self) -> NDArray[Any]:
        """Return all of them."""
        return self[:] if len(self) else np.empty(0, dtype=self._dtype)  # an empty file cannot be mapped


def map_tokens(folder: Path, key: str, description: Description) -> MappedTokens:
    """Return the tokens of a key; they are read from the file only when used."""
    return MappedTokens(folder / f"{key}.tokens", description.dtype, 0, description.tokens)


def dtype_of(vocabulary: int) -> np.dtype[Any]:
    """Return the smallest type that holds the tokens of a vocabulary."""
    *small, largest = _TYPES
    return np.dtype(next((name for name in small if vocabulary - 1 <= np.iinfo(name).max), largest))


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file under a temporary name, then rename it, so that no reader sees a partial file."""
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with temporary.open("xb") as stream:
            write(stream)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
