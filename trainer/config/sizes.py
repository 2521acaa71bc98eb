"""Sizes of memory, as people write them."""

import re

_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?(?:([KMGT])(i?)B|B)?")


def parse_size(text: object) -> int | None:
    """Return the bytes of, say, 1048576, "512MiB" or "1.5 GB"; None if it is no size."""
    match = _SIZE.fullmatch(str(text))
    if match is None:
        return None
    number, prefix, binary = match.groups()
    power = "KMGT".index(prefix) + 1 if prefix else 0
    return int(float(number) * (1024 if binary else 1000) ** power)


def size_text(number: float) -> str:
    """Return a number of bytes with a unit of 1024s, such as "6.4 MiB"."""
    if number < 1024:  # noqa: PLR2004
        return f"{number:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        number /= 1024
        if number < 1024:  # noqa: PLR2004
            return f"{number:.1f} {unit}"
    return f"{number / 1024:.1f} TiB"
