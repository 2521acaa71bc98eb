"""Custom schedules read from files."""

from pathlib import Path

import pytest

from tests.support.schedules import training_schedule
from trainer.errors import UserError
from trainer.schedule import assemble
from trainer.schedule.actions import COMPLETES_WEIGHT_GRADIENT, MAKES_INPUT_GRADIENT, Kind, Schedule, Tied
from trainer.schedule.resolve import recipes, resolve
from trainer.schedule.validate import ScheduleError, validate

COMPUTING = {Kind.FORWARD} | MAKES_INPUT_GRADIENT | COMPLETES_WEIGHT_GRADIENT
MINE = """
# a comment
F0.0 F0.1 B0.0 F0.2 B0.1 B0.2

F1.0 B1.0 F1.1 I1.1 F1.2 W1.1 B1.2   # one of them split
"""


def written(folder: Path, text: str) -> str:
    path = folder / "mine.txt"
    path.write_text(text)
    return str(path)


def as_file(schedule: Schedule) -> str:
    """Return the file's text of a schedule, as a user would write it."""
    lines = [" ".join(str(a) for a in actions if a.kind in COMPUTING) for actions in schedule.workers]
    return "\n".join([f"placement {' '.join(map(str, schedule.placement))}", *lines])


@pytest.mark.parametrize("name", recipes())
def test_every_built_in_schedule_can_be_written_and_read(name: str, tmp_path: Path) -> None:
    ties = [Tied(0, 3)]
    schedule = training_schedule(name, 4, 8, ties)
    path = written(tmp_path, as_file(schedule))
    again = training_schedule(path, 4, 8, ties)
    assert (again.placement, again.workers) == (schedule.placement, schedule.workers)


def test_a_custom_schedule(tmp_path: Path) -> None:
    schedule = training_schedule(written(tmp_path, MINE), 2, 3)
    validate([schedule])
    assert schedule.placement == (0, 1)
    assert " ".join(map(str, schedule.workers[1])) == (
        "ra1.0<0 F1.0 B1.0 sg1.0>0 ra1.1<0 F1.1 I1.1 sg1.1>0 ra1.2<0 F1.2 W1.1 B1.2 sg1.2>0 A1 Aw1 U1"
    )


def test_a_schedule_that_hangs_is_refused(tmp_path: Path) -> None:
    schedule = training_schedule(written(tmp_path, "F0.0 B0.0 F0.1 B0.1\nF1.0 F1.1 B1.0 B1.1"), 2, 2)
    with pytest.raises(
        ScheduleError, match=r"deadlock: worker 0 waits in rg0\.0<1 for worker 1, which waits in ra1\.1<0"
    ):
        validate([schedule])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("F0.0 G0.0", "line 1: 'G' is not a valid Kind"),
        ("F0.0 forward", "line 1: 'forward' is not an action such as F2.5"),
        ("\nF0.0 sa0.0>1", "line 2: sa0.0>1: give F, B, I and W only"),
        ("F0.0 A0", "line 1: A0: give F, B, I and W only"),
        ("# nothing", "has no worker"),
        ("placement 0 2\nF0.0 B0.0\nF1.0 B1.0", "places stages on workers 0, 2, but has lines for 2"),
        ("placement zero\nF0.0", "line 1: invalid literal for int"),
    ],
)
def test_a_file_with_a_mistake_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        resolve(written(tmp_path, text))


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff")
    with pytest.raises(UserError, match=r"schedule=.*picture\.png cannot be read: 'utf-8' codec"):
        resolve(str(tmp_path / "picture.png"))
    for path in (tmp_path, tmp_path / "missing.txt"):
        with pytest.raises(UserError, match=r"is not one of gpipe, .*, nor a file"):
            resolve(str(path))


def test_a_run_with_other_sizes_is_refused(tmp_path: Path) -> None:
    recipe = resolve(written(tmp_path, MINE))
    assert (recipe.workers, recipe.micro_batches, recipe.stages_per_worker) == (2, 3, 1)
    with pytest.raises(UserError, match=r"is for 2 workers .*: use layout\.stages=2"):
        recipe.placement(3)
    with pytest.raises(UserError, match=r"leave layout\.virtual_stages out"):
        recipe.placement(2, 2)
    with pytest.raises(UserError, match="has 3 micro-batches, but a replica's step has 4"):
        recipe.orders(recipe.placement(2), 4)


def test_the_digest_is_that_of_the_text(tmp_path: Path) -> None:
    first = resolve(written(tmp_path, MINE))
    assert first.digest == resolve(written(tmp_path, MINE)).digest
    assert first.digest != resolve(written(tmp_path, MINE + "# more")).digest
    assert resolve("1f1b").digest is None


def test_a_file_is_read_once(tmp_path: Path) -> None:
    path = written(tmp_path, MINE)
    recipe = resolve(path)
    Path(path).write_text("F0.0 B0.0")
    validate([assemble.training_schedule(recipe, 2, 3)])
    assert resolve(path).workers == 1
