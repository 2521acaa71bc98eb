"""What the docs show is what the code draws, and what they link to is there."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.schedules import training_schedule
from trainer.schedule.actions import Tied
from trainer.schedule.draw import draw_text
from trainer.schedule.resolve import recipes
from trainer.schedule.simulate import simulate

REPOSITORY = Path(__file__).parents[1]
PAGES = [
    REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "docs/schedules.md", "docs/equality.md")
]
STAGES, MICRO_BATCHES = 4, 6


def blocks(page: Path) -> Iterator[list[str]]:
    """Yield the lines of every block that is not in a programming language."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
        if not language:
            yield block.splitlines()


@pytest.mark.parametrize("page", ["README.md", "docs/schedules.md"])
def test_drawings_are_those_that_the_code_draws(page: str) -> None:
    drawings = [block for block in blocks(REPOSITORY / page) if block[0] in recipes()]
    assert drawings
    for name, *rows in drawings:
        schedule = training_schedule(name, STAGES, MICRO_BATCHES)
        timeline = simulate(schedule, [1.0] * STAGES, [2.0] * STAGES)
        assert rows == draw_text(schedule, timeline).splitlines()


def test_lists_are_those_that_run() -> None:
    (lists,) = [block for block in blocks(REPOSITORY / "docs/schedules.md") if block[0].startswith("rank 0")]
    schedule = training_schedule("1f1b", 2, 2, [Tied(0, 1)])
    assert lists == [
        f"rank {rank}  {' '.join(map(str, actions))}" for rank, actions in enumerate(schedule.workers)
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    inside = [target.partition("#")[0] for target in targets if "://" not in target]
    missing = [target for target in inside if not (page.parent / target).exists()]
    assert not missing
