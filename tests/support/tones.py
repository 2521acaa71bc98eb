"""A corpus in which every letter is a tone: LibriSpeech's folders, made in milliseconds."""

import wave
from collections.abc import Mapping
from pathlib import Path

import numpy as np

RATE = 8000
LETTERS = {"a": 400, "b": 700, "c": 1100, "d": 1700, "'": 2500}  # hertz
_SECONDS = 0.08  # of a letter, and of silence after it


def sound(text: str, loudness: float = 0.5) -> np.ndarray:
    """Return the samples of a text, from -1 to 1."""
    time = np.arange(round(_SECONDS * RATE)) / RATE
    parts = [np.zeros(len(time))]
    for letter in text.lower():
        parts += [loudness * np.sin(2 * np.pi * LETTERS.get(letter, 0) * time), np.zeros(len(time))]
    return np.concatenate(parts)


def write_wave(path: Path, samples: np.ndarray, rate: int = RATE) -> None:
    """Write samples as a file of 16 bits."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())


def write_corpus(root: Path, speakers: Mapping[str, list[str]]) -> Path:
    """Write what speakers say, a text a recording; return the root."""
    for number, (speaker, texts) in enumerate(speakers.items()):
        chapter = root / speaker / "1"
        chapter.mkdir(parents=True)
        names = [f"{speaker}-1-{place:04d}" for place in range(len(texts))]
        lines = [f"{name} {text}\n" for name, text in zip(names, texts, strict=True)]
        (chapter / f"{speaker}-1.trans.txt").write_text("".join(lines))
        for name, text in zip(names, texts, strict=True):
            write_wave(chapter / f"{name}.wav", sound(text, 0.2 + 0.1 * number))
    return root


def random_texts(number: int, seed: int) -> list[str]:
    """Return random words of the letters."""
    draw = np.random.default_rng(seed)
    words = ["ab", "cad", "bad", "dab", "a'c"]
    return [" ".join(draw.choice(words, draw.integers(1, 4))) for _ in range(number)]
