"""Feature files: computed once per node, then read by every rank through the page cache.

`<key>.features` holds the frames of all recordings, one after another, as little-endian 16-bit floats;
`<key>.json` says how many each recording has. It is written last: if it exists, the frames are complete.
"""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from trainer.data.speech.corpus import Recording
from trainer.data.speech.features import VERSION, Bands, read_features
from trainer.data.tokens import write_atomically

_TYPE = np.dtype("<f2")  # normalised features lie around 0 and 1: its 11 bits are enough
_PER_BATCH = 256  # recordings in memory at a time


@dataclass(frozen=True)
class Contents:
    """What a feature file holds.

    Attributes:
        frames: The number of frames of each recording.
        digest: The SHA-256 of all of them.
    """

    frames: list[int]
    digest: str


def feature_key(recordings: Sequence[Recording], bands: Bands) -> str:
    """Return a name for the features of recordings; it changes when a file or the bands do."""
    files = [(str(each.path.resolve()), each.size, each.modified) for each in recordings]
    return hashlib.sha256(json.dumps([VERSION, asdict(bands), files]).encode()).hexdigest()[:32]


def contents(folder: Path, key: str, bands: Bands) -> Contents | None:
    """Return what the key's feature file holds, or None if it is missing or incomplete."""
    try:
        held = Contents(**json.loads((folder / f"{key}.json").read_text()))
        size = (folder / f"{key}.features").stat().st_size
        return held if size == sum(held.frames) * bands.number * _TYPE.itemsize else None
    except (OSError, ValueError, TypeError):
        return None


def write_features(folder: Path, key: str, recordings: Sequence[Recording], bands: Bands) -> None:
    """Compute the features of recordings and write them; another run may safely do so at the same time.

    Raises:
        UserError: A recording cannot be read.
    """
    frames: list[int] = []
    digest = hashlib.sha256()

    def write(stream: IO[bytes]) -> None:
        # Threads, not processes, for ranks must not fork: decoders and transforms let others run meanwhile.
        with ThreadPoolExecutor() as threads:
            for start in range(0, len(recordings), _PER_BATCH):
                batch = [each.path for each in recordings[start : start + _PER_BATCH]]
                for features in threads.map(partial(read_features, bands=bands), batch):
                    block = features.numpy().astype(_TYPE).tobytes()
                    digest.update(block)
                    stream.write(block)
                    frames.append(len(features))

    write_atomically(folder / f"{key}.features", write)
    content = json.dumps(asdict(Contents(frames, digest.hexdigest()))).encode()
    write_atomically(folder / f"{key}.json", lambda stream: stream.write(content))


def map_features(folder: Path, key: str, bands: Bands) -> NDArray[Any]:
    """Return all frames [frames, bands]; they are read from the file only when used."""
    frames = np.memmap(folder / f"{key}.features", dtype=_TYPE, mode="r")
    return np.asarray(frames).reshape(-1, bands.number)
