"""Errors that the user can fix, and their exit code, on which scripts may rely."""

import difflib
from collections.abc import Iterable

EXIT_USER_ERROR = 2


class UserError(Exception):
    """Invalid input. The message states what was given, what was expected and what to do."""


def suggest(given: object, known: Iterable[str]) -> str:
    """Return "; did you mean ...?" with the closest known word, or "" if none is close."""
    near = difflib.get_close_matches(str(given), list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""
