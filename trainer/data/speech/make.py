"""`python -m trainer.data.speech.make FOLDER`: makes a spoken corpus, to try speech recognition without one.

espeak-ng speaks random digits with many voices, at random speeds and pitches. FOLDER/train and
FOLDER/held-out lie as LibriSpeech does, and share no voice:

    python -m trainer experiment=speech data.path=FOLDER/train data.validation_path=FOLDER/held-out
"""

import argparse
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import EXIT_USER_ERROR, UserError

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_MOST_WORDS = 5
_LANGUAGES = ("en-us", "en-gb", "en-gb-scotland", "en-029", "en-gb-x-rp")
# Variants change the speaker: their vocal tract, and how they use it.
_TRAINED = ("", "+m1", "+m3", "+m5", "+f1", "+f2")
_HELD_OUT = ("+f4", "+croak")
_SPEEDS = (130, 210)  # words a minute
_PITCHES = (20, 80)  # espeak-ng's own measure, from 0 to 99


@dataclass(frozen=True)
class _Utterance:
    """What is said, how, and where it is recorded."""

    path: Path
    voice: str
    speed: int
    pitch: int
    text: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the corpus that the command line asks for; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer.data.speech.make",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the folder to make; it must not exist")
    parser.add_argument("--train", type=int, default=1200, help="utterances to train on (default: 1200)")
    parser.add_argument("--held-out", type=int, default=200, help="utterances to validate on (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="chooses what is said, and how (default: 0)")
    given = parser.parse_args(arguments)
    try:
        make(given.folder, given.train, given.held_out, given.seed)
    except UserError as error:
        print(f"trainer: error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    print(
        f"made: {given.train} utterances in {given.folder}/train, {given.held_out} in {given.folder}/held-out"
    )
    return 0


def make(folder: Path, train: int, held_out: int, seed: int) -> None:
    """Make a corpus.

    Args:
        folder: The folder, which must not exist.
        train: Utterances to train on.
        held_out: Utterances of other voices, to validate on.
        seed: Chooses what is said, and how.

    Raises:
        UserError: espeak-ng is not installed or fails, the folder exists or cannot be written, or there is
            nothing to make.
    """
    if shutil.which("espeak-ng") is None:
        raise UserError("espeak-ng, which speaks the corpus, is not installed: apt-get install espeak-ng")
    if min(train, held_out) < 1:
        raise UserError(f"--train {train} --held-out {held_out}: each must be 1 or more")
    if folder.exists():
        raise UserError(f"{folder} exists already: give a new folder, or remove it")
    draw = random.Random(seed)
    utterances = [
        *_utterances(folder / "train", train, _TRAINED, draw),
        *_utterances(folder / "held-out", held_out, _HELD_OUT, draw),
    ]
    try:
        _write_transcripts(utterances)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from error
    with ThreadPoolExecutor() as threads:
        list(threads.map(_speak, utterances))


def _utterances(folder: Path, number: int, variants: Sequence[str], draw: random.Random) -> list[_Utterance]:
    """Return random utterances of random voices, numbered by voice."""
    utterances: list[_Utterance] = []
    said: dict[str, int] = {}
    for _ in range(number):
        voice = draw.choice(_LANGUAGES) + draw.choice(variants)
        text = " ".join(draw.choices(WORDS, k=draw.randint(1, _MOST_WORDS)))
        speed, pitch = draw.randint(*_SPEEDS), draw.randint(*_PITCHES)
        name = f"{voice}-0-{said.setdefault(voice, 0):04d}.wav"
        said[voice] += 1
        utterances.append(_Utterance(folder / voice / "0" / name, voice, speed, pitch, text))
    return utterances


def _write_transcripts(utterances: Sequence[_Utterance]) -> None:
    lines: dict[Path, list[str]] = {}
    for each in utterances:
        lines.setdefault(each.path.parent, []).append(f"{each.path.stem} {each.text.upper()}\n")
    for chapter, texts in lines.items():
        chapter.mkdir(parents=True)
        (chapter / f"{chapter.parent.name}-0.trans.txt").write_text("".join(texts))


def _speak(utterance: _Utterance) -> None:
    """Record an utterance.

    Raises:
        UserError: espeak-ng fails.
    """
    settings = ["-v", utterance.voice, "-s", str(utterance.speed), "-p", str(utterance.pitch)]
    command = ["espeak-ng", *settings, "-w", str(utterance.path), utterance.text]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not utterance.path.is_file():
        raise UserError(f"{' '.join(command)} failed: {done.stderr.strip() or 'it wrote no recording'}")


if __name__ == "__main__":
    sys.exit(main())
