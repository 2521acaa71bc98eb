"""Finds recordings and their transcripts, in folders as LibriSpeech has them.

    SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt      a line for each recording: its name, and what is said
    SPEAKER/CHAPTER/SPEAKER-CHAPTER-0000.flac      or .wav

Such folders may lie deeper, as those of train-clean-100 and train-other-500 do in LibriSpeech's own folder.
"""

from dataclasses import dataclass
from pathlib import Path

from trainer.errors import UserError

_TRANSCRIPTS = ".trans.txt"
_KINDS = (".flac", ".wav")


@dataclass(frozen=True)
class Recording:
    """A recording, as it was when found.

    Attributes:
        path: Its file.
        speaker: Who speaks: the name of the folder that holds the chapter.
        text: What is said, in lower case, its words separated by single spaces.
        size: Of the file, in bytes.
        modified: When it was, in nanoseconds since 1970.
    """

    path: Path
    speaker: str
    text: str
    size: int
    modified: int


def find_recordings(path: str, key: str) -> list[Recording]:
    """Return the recordings of a folder, sorted by their paths.

    Args:
        path: The folder.
        key: The dotted key that it comes from, for messages.

    Raises:
        UserError: There are none, or a recording has no transcript, or a transcript no recording.
    """
    root = Path(path).expanduser()
    if not path or not root.is_dir():
        raise UserError(
            f"{key}={path} is no folder (from {Path.cwd()}): give one of recordings as LibriSpeech has them; "
            "python -m trainer.data.speech.make FOLDER makes one"
        )
    transcripts = sorted(root.rglob(f"*/*/*{_TRANSCRIPTS}"))
    if not transcripts:
        raise UserError(
            f"{key}={path} has no transcripts, SPEAKER/CHAPTER/SPEAKER-CHAPTER{_TRANSCRIPTS}: "
            "recordings must lie as LibriSpeech's do"
        )
    try:
        found = [recording for file in transcripts for recording in _chapter(file)]
        _refuse_untranscribed(root, {recording.path for recording in found})
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error
    if not found:
        raise UserError(f"{key}={path} has only empty transcripts, such as {transcripts[0]}")
    return sorted(found, key=lambda recording: recording.path)


def _chapter(file: Path) -> list[Recording]:
    """Return the recordings of one file of transcripts."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8, at byte {error.start}: convert it") from error
    found = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, *words = line.split()
        place = f"{file}, line {number}"
        if not words:
            raise UserError(f"{place}: the transcript of {name} is empty: remove the line and the recording")
        if name in found:
            raise UserError(f"{place}: {name} has a second transcript: remove one of the two")
        path = next((path for kind in _KINDS if (path := file.with_name(name + kind)).is_file()), None)
        if path is None:
            raise UserError(f"{place}: there is no recording {name}.flac or {name}.wav beside it")
        status = path.stat()
        text = " ".join(words).lower()
        found[name] = Recording(path, file.parent.parent.name, text, status.st_size, status.st_mtime_ns)
    return list(found.values())


def _refuse_untranscribed(root: Path, transcribed: set[Path]) -> None:
    """Raise a UserError if a recording has no transcript."""
    for kind in _KINDS:
        for path in sorted(root.rglob(f"*{kind}")):
            if path not in transcribed:
                raise UserError(
                    f"{path} has no transcript: add a line '{path.stem} WORDS' to the file *{_TRANSCRIPTS} "
                    "beside it, or remove the recording"
                )
