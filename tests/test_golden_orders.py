"""Orders do not change: digests of complete schedules, written by the code of commit 7c29108.

A faster or cleaner implementation must produce the same orders. After an intended change, regenerate the file
with `python -m tests.test_golden_orders`.
"""

import json
import re
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path

import pytest

from tests.support.schedules import training_schedule
from trainer.schedule.actions import Kind, Schedule, Work

FILE = Path(__file__).parent / "fixtures" / "orders.json"
NAMES = ("gpipe", "1f1b", "zb_h1", "interleaved", "zb_v")
KINDS = (Kind.FORWARD, Kind.BACKWARD, Kind.BACKWARD_INPUT, Kind.BACKWARD_WEIGHT)


def works(stages: int) -> Mapping[str, Work | None]:
    """Return named sets of action times."""
    last = [1.0] * (stages - 1) + [1.5]
    uneven = [1 + 0.1 * (7 * stage % 5) for stage in range(stages)]
    columns = {
        "split+2%": ([1.0] * stages, [2.0] * stages, [1.02] * stages, [1.02] * stages),
        "split+20%": ([1.0] * stages, [2.0] * stages, [1.2] * stages, [1.2] * stages),
        "gpt": (last, [2.1 * t for t in last], [1.4 * t for t in last], [0.8 * t for t in last]),
        "uneven": (
            uneven,
            [2 * t for t in uneven],
            [1.3 * t for t in uneven[::-1]],
            [0.9 * t for t in uneven],
        ),
    }
    return {"equal": None} | {name: dict(zip(KINDS, column, strict=True)) for name, column in columns.items()}


def cases(name: str) -> Iterator[tuple[str, Schedule]]:
    """Yield a schedule in several sizes, each with a unique name."""
    if name == "zb_v":
        for p, m in ((1, 4), (2, 1), (2, 3), (2, 8), (3, 6), (4, 8)):
            for kind, work in works(2 * p).items():
                yield f"{name} p={p} m={m} {kind}", training_schedule(name, p, m, work=work)
        return
    for p in (1, 2, 3, 5, 8):
        for m in (1, 3, 5, 8, 13):
            for v in (1, 2, 3) if name == "interleaved" else (1,):
                yield f"{name} p={p} m={m} v={v}", training_schedule(name, p, m, (), v)


def digest(schedule: Schedule) -> str:
    lists = [_as_written(" ".join(map(str, actions))) for actions in schedule.workers]
    return sha256(repr((schedule.placement, lists)).encode()).hexdigest()[:16]


def _as_written(actions: str) -> str:
    """Return the actions by the short names that they had when the digests were written."""
    for name, old in (("Aw", "Z"), ("U", "O"), ("sR", "sT"), ("rR", "rT")):
        actions = re.sub(rf"\b{name}(?=\d)", old, actions)
    return actions


@pytest.mark.parametrize("name", NAMES)
def test_orders_are_unchanged(name: str) -> None:
    golden = {key: value for key, value in json.loads(FILE.read_text()).items() if key.split()[0] == name}
    assert {key: digest(schedule) for key, schedule in cases(name)} == golden


if __name__ == "__main__":
    digests = {key: digest(schedule) for name in NAMES for key, schedule in cases(name)}
    FILE.write_text(json.dumps(digests, indent=0) + "\n")
