"""Shows how to write a value that Hydra's grammar does not take as it is, such as a path with "="."""

import shlex
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException


def quoting_hint(arguments: Sequence[str], complaint: str, *, sweep: bool) -> str | None:
    """Return a remedy for the first override that Hydra does not take as one value; None if there is none.

    Args:
        arguments: The command line.
        complaint: What Hydra says.
        sweep: Whether Hydra's --multirun is on, which takes lists of values apart.
    """
    for word in arguments:
        key, equals, value = word.partition("=")
        if not equals or key.startswith("-") or value.startswith(("[", "{")) or _is_taken(word, sweep=sweep):
            continue
        quoted = f"{key}={_quoted(value)}"
        if not _is_taken(quoted, sweep=sweep):
            return None
        if _is_taken(word, sweep=True):
            lists = f"; a list needs brackets, {shlex.quote(f'{key}=[{value}]')}, and a sweep --multirun"
            return (
                f"{word} has several values: if it is one, quote it for Hydra, {shlex.quote(quoted)}{lists}"
            )
        remedy = f"quote the value for Hydra, and all of it for the shell: {shlex.quote(quoted)}"
        return f"{word} ({complaint}): {remedy}"
    return None


def _is_taken(override: str, *, sweep: bool) -> bool:
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException:
        return False
    return sweep or not parsed.is_sweep_override()


def _quoted(value: str) -> str:
    """Return a value in the double quotes of Hydra's grammar, where a backslash escapes quotes."""
    escaped = value.replace('\\"', '\\\\"').replace('"', '\\"').replace("${", "\\${")
    if escaped.endswith("\\"):
        escaped += "\\" * (len(escaped) - len(escaped.rstrip("\\")))
    return f'"{escaped}"'
