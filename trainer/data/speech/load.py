"""Speech as samples: recordings as log-mel features, and what is said in them as letters."""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.config.data import SpeechDataConfig
from trainer.data.dataset import Data
from trainer.data.speech.corpus import Recording, find_recordings
from trainer.data.speech.feature_file import contents, feature_key, map_features, write_features
from trainer.data.speech.features import Bands, import_soundfile
from trainer.data.speech.letters import Letters, letters_of
from trainer.data.tokens import not_cached, prepare_cache
from trainer.errors import UserError

_ALPHABET = 29  # of English: blank, space, apostrophe and 26 letters
_LETTERS_A_SECOND = 15  # of read speech, as in LibriSpeech: for examples
_SHORTEST = 0.001  # seconds of a frame
_log = logging.getLogger(__name__)


class Utterances:
    """Recordings and their transcripts; a batch is padded with zeros to its longest.

    Args:
        frames: The frames of all recordings [frames, bands].
        starts: Where those of each recording begin.
        lengths: How many each has.
        texts: Their transcripts, as the numbers of letters.
        names: Their names, for messages.
        letters: What the numbers mean.

    Attributes:
        lengths: How many frames each recording has.
        letters: What the numbers in transcripts mean.
    """

    def __init__(
        self,
        *,
        frames: NDArray[Any],
        starts: NDArray[np.int64],
        lengths: NDArray[np.int64],
        texts: Sequence[NDArray[np.int64]],
        names: Sequence[str],
        letters: Letters,
    ) -> None:
        self._frames, self._starts, self._texts = frames, starts, texts
        self.lengths, self.letters, self._names = lengths, letters, names
        self._needed = np.array([len(text) + np.count_nonzero(text[1:] == text[:-1]) for text in texts])

    def __len__(self) -> int:
        """Return the number of recordings."""
        return len(self._texts)

    @property
    def bands(self) -> int:
        """Return the number of features of a frame."""
        return int(self._frames.shape[1])

    def check(self, stride: int) -> None:
        """Check that transcripts fit into their recordings, if `stride` frames become one.

        CTC needs a frame for each letter, and one between equal letters that follow one another.

        Raises:
            UserError: One is too long.
        """
        frames = -(-self.lengths // stride)
        for place in np.flatnonzero(frames < self._needed)[:1]:
            needs = f"needs {self._needed[place]} frames for its {len(self._texts[place])} letters"
            shortened = f" at model.stride={stride}" if stride > 1 else ""
            remedy = "lower model.stride" if stride > 1 else "remove the recording"
            raise UserError(
                f"the transcript of {self._names[place]} {needs}, and the recording has {frames[place]}"
                f"{shortened}: correct the transcript, or {remedy}"
            )

    def inputs(self, samples: NDArray[np.int64]) -> dict[str, Tensor]:
        """Return frames, float32 [samples, time, bands], and their numbers, lengths, int64 [samples]."""
        features = [
            np.asarray(self._frames[start : start + length], dtype=np.float32)
            for start, length in zip(self._starts[samples], self.lengths[samples], strict=True)
        ]
        return {"frames": _padded(features), "lengths": torch.from_numpy(self.lengths[samples])}

    def targets(self, samples: NDArray[np.int64]) -> dict[str, Tensor]:
        """Return letters, int64 [samples, letters], and their numbers, lengths, int64 [samples]."""
        texts = [self._texts[sample] for sample in samples]
        return {"letters": _padded(texts), "lengths": torch.tensor([len(text) for text in texts])}


def prepare(config: SpeechDataConfig) -> None:
    """Compute the features, unless `config.cache` already has them; one rank of each node calls this.

    Raises:
        UserError: The corpus is incomplete, a transcript has a letter that no other has to train on, a
            recording cannot be read, or the cache cannot be written.
    """
    import_soundfile()
    cache, bands = Path(config.cache), _bands(config)
    parts = _parts(config)
    letters = _letters(parts[0], config)
    for recordings in parts:
        for each in recordings:
            _encoded(each, letters, config)  # before hours of computing
    for recordings in parts:
        key = feature_key(recordings, bands)
        if contents(cache, key, bands) is None:
            prepare_cache(cache)
            _log.info("Computing the features of %d recordings", len(recordings))
            write_features(cache, key, recordings, bands)


def load(config: SpeechDataConfig) -> Data:
    """Return the recordings; those of `config.validation_path`, or of some speakers, are held out.

    Raises:
        UserError: The corpus is incomplete or was not prepared, or a transcript is too long for its
            recording.
    """
    training, validation = _parts(config)
    letters = _letters(training, config)
    parts, digests, notes = [], [], []
    for recordings in (training, validation):
        utterances, digest = _utterances(recordings, letters, config)
        parts.append(utterances)
        digests.append([digest, [each.text for each in recordings]])
        if left_out := len(recordings) - len(utterances):
            notes.append(f"{left_out} of {len(recordings)} recordings are longer than data.longest, left out")
    facts = json.dumps([*digests, letters.letters, config.longest])
    return Data(
        training=parts[0],
        validation=parts[1],
        fingerprint=hashlib.sha256(facts.encode()).hexdigest(),
        notes=tuple(notes),
        metrics=("word_error_rate", "character_error_rate"),
    )


def example(config: SpeechDataConfig, vocabulary: int | None = None) -> Data:
    """Return a few recordings of zeros, `config.longest` seconds each.

    Args:
        config: The data's.
        vocabulary: The number of letters, with the space and the blank; None: that of English.
    """
    length = round(config.longest / config.hop)
    count = 2
    text = 2 + np.arange(round(config.longest * _LETTERS_A_SECOND), dtype=np.int64) % 2
    letters = Letters(map(chr, range(ord("a"), ord("a") + (vocabulary or _ALPHABET) - 2)))
    utterances = Utterances(
        frames=np.zeros((length, config.features), dtype=np.float16),
        starts=np.zeros(count, dtype=np.int64),
        lengths=np.full(count, length, dtype=np.int64),
        texts=[text] * count,
        names=["example"] * count,
        letters=letters,
    )
    return Data(utterances, utterances, fingerprint="example")


def _bands(config: SpeechDataConfig) -> Bands:
    """Return the configured bands.

    Raises:
        UserError: They have no width, or frames no length.
    """
    if config.lowest >= config.highest:
        raise UserError(
            f"data.lowest={config.lowest:g} must be below data.highest={config.highest:g}: bands lie between"
        )
    if min(config.hop, config.window) < _SHORTEST:
        raise UserError(
            f"data.window={config.window:g} and data.hop={config.hop:g} are in seconds: each must be "
            f"{_SHORTEST:g} or more"
        )
    return Bands(config.features, config.lowest, config.highest, config.window, config.hop)


def _parts(config: SpeechDataConfig) -> tuple[list[Recording], list[Recording]]:
    """Return the recordings to train on, and those that are held out.

    Raises:
        UserError: Either part has none.
    """
    recordings = find_recordings(config.path, "data.path")
    if config.validation_path is not None:
        return recordings, find_recordings(config.validation_path, "data.validation_path")
    speakers = sorted({each.speaker for each in recordings})
    if len(speakers) == 1:
        raise UserError(
            f"data.path={config.path} has one speaker, and whole speakers are held out for validation: give "
            "data.validation_path"
        )
    number = min(max(1, round(config.validation * len(speakers))), len(speakers) - 1)
    chosen = np.random.default_rng(config.seed).permutation(len(speakers))[:number]
    held_out = {speakers[place] for place in chosen}
    training = [each for each in recordings if each.speaker not in held_out]
    return training, [each for each in recordings if each.speaker in held_out]


def _utterances(
    recordings: Sequence[Recording], letters: Letters, config: SpeechDataConfig
) -> tuple[Utterances, str]:
    """Return recordings as samples, and the digest of their features.

    Raises:
        UserError: They were not prepared, or a transcript does not fit.
    """
    cache, bands = Path(config.cache), _bands(config)
    key = feature_key(recordings, bands)
    held = contents(cache, key, bands)
    if held is None or len(held.frames) != len(recordings):
        raise not_cached(f"the features of {recordings[0].path.parent} and others", cache)
    lengths = np.array(held.frames, dtype=np.int64)
    kept = np.flatnonzero(lengths * config.hop <= config.longest).tolist()
    if not kept:
        raise UserError(f"every recording is longer than data.longest={config.longest:g} seconds: raise it")
    utterances = Utterances(
        frames=map_features(cache, key, bands),
        starts=(np.cumsum(lengths) - lengths)[kept],
        lengths=lengths[kept],
        texts=[_encoded(recordings[place], letters, config) for place in kept],
        names=[str(recordings[place].path) for place in kept],
        letters=letters,
    )
    utterances.check(stride=1)
    return utterances, held.digest


def _letters(training: Sequence[Recording], config: SpeechDataConfig) -> Letters:
    """Return the configured letters, or those of the transcripts to train on."""
    return letters_of([config.letters.lower()] if config.letters else [each.text for each in training])


def _encoded(recording: Recording, letters: Letters, config: SpeechDataConfig) -> NDArray[np.int64]:
    """Return a transcript as the numbers of its letters.

    Raises:
        UserError: It has another character.
    """
    unknown = letters.unknown(recording.text)
    if unknown is not None:
        known = "data.letters" if config.letters else "the transcripts to train on"
        raise UserError(
            f"the transcript of {recording.path} has the character {unknown!r}, which is not in {known}: "
            f"correct it, or set data.letters to {letters.letters + unknown!r}"
        )
    return np.array(letters.encode(recording.text), dtype=np.int64)


def _padded(sequences: Sequence[NDArray[Any]]) -> Tensor:
    """Return sequences [length, ...] as one tensor [sequences, longest, ...], padded with zeros."""
    longest = max(map(len, sequences))
    batch = np.zeros((len(sequences), longest, *sequences[0].shape[1:]), dtype=sequences[0].dtype)
    for row, sequence in zip(batch, sequences, strict=True):
        row[: len(sequence)] = sequence
    return torch.from_numpy(batch)
