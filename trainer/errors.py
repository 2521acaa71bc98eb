"""Errors that the user can fix, ends that are no failure, and their exit codes, on which scripts may rely."""

import difflib
from collections.abc import Iterable, Sequence

EXIT_USER_ERROR = 2
EXIT_SAVED = 75  # EX_TEMPFAIL of sysexits.h: run again to continue


class UserError(Exception):
    """Invalid input. The message states what was given, what was expected and what to do."""


class TrainingError(Exception):
    """Training cannot go on, as where replicas differ. The message states what happened and what to do."""


class StoppedEarly(Exception):  # noqa: N818  (it is no error)
    """A signal asked the run to stop, and everything is saved. The message states how to continue."""


def suggest(given: object, known: Iterable[str]) -> str:
    """Return "; did you mean ...?" with the closest known word, or "" if none is close."""
    near = difflib.get_close_matches(str(given), list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def add_note(error: BaseException, note: str) -> None:
    """Add a line to an error, which is printed after it: `BaseException.add_note`, on Python 3.10 too."""
    error.__notes__ = [*notes(error), note]  # type: ignore[attr-defined]


def notes(error: BaseException) -> list[str]:
    """Return the lines that were added to an error."""
    return list(getattr(error, "__notes__", []))


def listed(noun: str, numbers: Sequence[int]) -> str:
    """Return such as "rank 1" or "ranks 1, 2"."""
    return f"{noun}{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"
