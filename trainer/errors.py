"""What a command can end with: the exit codes that scripts rely on, and the error a user can mend."""

import difflib
from collections.abc import Iterable

EXIT_USER_ERROR = 2


class UserError(Exception):
    """The input is wrong. The message says what was given, what was expected and what to do."""


def suggest(given: object, known: Iterable[str]) -> str:
    """Return "; did you mean ...?" with the nearest known word, or nothing where none is near."""
    near = difflib.get_close_matches(str(given), list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""
