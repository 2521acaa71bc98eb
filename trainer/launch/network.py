"""Measured links: a table of them, and what `python -m trainer.plan cluster=FILE` reads."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from trainer.errors import UserError

FILE = "cluster.json"
_KEYS = ("plan.bandwidth", "plan.network", "plan.latency", "plan.ranks_per_node")


@dataclass(frozen=True)
class Measured:
    """A link from one rank to another.

    Attributes:
        hosts: The two hosts; the same name twice within a host.
        seconds: By message size in bytes: half of the median time there and back.
    """

    hosts: tuple[str, str]
    seconds: Mapping[int, float]

    @property
    def inside(self) -> bool:
        """Return whether both ranks are on one host."""
        return self.hosts[0] == self.hosts[1]

    @property
    def latency(self) -> float:
        """Return the seconds of the smallest message."""
        return self.seconds[min(self.seconds)]

    @property
    def bandwidth(self) -> float:
        """Return the bytes per second of the largest message, without the latency."""
        size = max(self.seconds)
        return size / max(self.seconds[size] - self.latency, 1e-9)


def table(links: Sequence[Measured]) -> str:
    """Return a line for each link."""
    rows = [["from", "to", "latency", "bandwidth", *(_bytes(size) for size in links[0].seconds)]]
    for link in links:
        rows.append(
            [
                *link.hosts,
                _time(link.latency),
                f"{link.bandwidth / 1e9:.2f} GB/s",
                *(_time(seconds) for seconds in link.seconds.values()),
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def plan_values(links: Sequence[Measured], slots: Sequence[int]) -> dict[str, float]:
    """Return what the planner assumes of such hosts: of several links, the slowest.

    Args:
        links: What was measured.
        slots: How many ranks each host takes.
    """
    inside = [link for link in links if link.inside]
    between = [link for link in links if not link.inside]
    values: dict[str, float] = {}
    if inside:
        values["plan.bandwidth"] = min(link.bandwidth for link in inside)
    if between:
        values["plan.network"] = min(link.bandwidth for link in between)
        values["plan.ranks_per_node"] = min(slots)
    values["plan.latency"] = max(link.latency for link in between or inside)
    return values


def write(path: Path, links: Sequence[Measured], slots: Mapping[str, int]) -> dict[str, float]:
    """Write the file of a cluster, and return what the planner takes of it.

    Raises:
        UserError: It cannot be written.
    """
    values = plan_values(links, list(slots.values()))
    content = {"slots": dict(slots), "links": [asdict(link) for link in links], "plan": values}
    try:
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error
    return values


def overrides(values: Mapping[str, float]) -> list[str]:
    """Return the values as words of a command line."""
    return [
        f"{key}={value:g}" if key != _KEYS[-1] else f"{key}={int(value)}" for key, value in values.items()
    ]


def read_overrides(path: str) -> list[str]:
    """Return what a file of a cluster says to the planner, as words of a command line.

    Raises:
        UserError: It is no such file.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))["plan"]
        if not all(key in _KEYS and isinstance(value, (int, float)) for key, value in values.items()):
            raise ValueError  # noqa: TRY301
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(
            f"cluster={path} must be a file that `python -m trainer.launch --check` has written"
        ) from None
    return overrides(values)


def _bytes(size: int) -> str:
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB" if size >= 1 << 10 else f"{size} B"


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} us" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"  # noqa: PLR2004
