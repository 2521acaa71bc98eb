"""Errors that the user can fix, and their exit code, on which scripts may rely."""

import difflib
from collections.abc import Iterable

EXIT_USER_ERROR = 2


class UserError(Exception):
    """Invalid input. The message states what was given, what was expected and what to do."""


class TrainingError(Exception):
    """Training cannot go on, as where replicas differ. The message states what happened and what to do."""


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
