"""Recipes: how names and files resolve to them, their common properties, and how to add one."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

from tests.fixtures import FIXTURES
from tests.support.one_process import Pipeline
from trainer.distributed.layout import Layout
from trainer.errors import UserError
from trainer.schedule import recipes as package
from trainer.schedule.actions import Action, Kind, Order, Tied, Work
from trainer.schedule.assemble import evaluation_schedule, training_schedule
from trainer.schedule.draw import draw_text
from trainer.schedule.merge import by_rank
from trainer.schedule.recipe import Placement, ScheduleRecipe, by_stage
from trainer.schedule.recipes.gpipe import gpipe
from trainer.schedule.resolve import check_schedule, recipes, resolve
from trainer.schedule.simulate import simulate
from trainer.schedule.validate import validate

NEW = Path(__file__).parent / "fixtures" / "recipes"
BUILT_IN = ["gpipe", "1f1b", "zb_h1", "interleaved", "zb_v"]


def drop_in(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Add a folder's files to the package of recipes."""
    patch.setattr(package, "__path__", [*package.__path__, str(folder)])
    recipes.cache_clear()


@pytest.fixture
def patch() -> Iterator[pytest.MonkeyPatch]:
    """Return a monkeypatch that also undoes changes to the modules and to the cache of `recipes`."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as context:
        yield context
    for name in set(sys.modules) - before:
        if name.startswith(f"{package.__name__}."):
            del sys.modules[name]
    recipes.cache_clear()


@pytest.fixture
def with_snake(patch: pytest.MonkeyPatch) -> ScheduleRecipe:
    drop_in(NEW, patch)
    return resolve("snake")


# --- from a name to a recipe


def test_names_are_sorted_by_stages_a_worker_then_age() -> None:
    assert list(recipes()) == BUILT_IN
    assert all(resolve(name).name == name for name in BUILT_IN)


@pytest.mark.parametrize("find", [resolve, check_schedule])
def test_a_misspelt_name_gets_the_names_and_the_nearest(find: Callable[[str], object]) -> None:
    with pytest.raises(UserError) as error:
        find("1b1f")
    assert str(error.value) == (
        "schedule=1b1f is not one of gpipe, 1f1b, zb_h1, interleaved, zb_v, nor a file; did you mean 1f1b?"
    )


def test_neither_recipes_nor_the_check_of_a_configuration_import_torch() -> None:
    program = (
        "import sys; from trainer.schedule.resolve import recipes; from trainer.config import check;"
        "recipes(); print([name for name in ('torch', 'mpi4py', 'horovod') if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


# --- properties of all recipes


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("p", [1, 2, 3, 4])
@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_the_closed_form_is_what_the_simulator_finds(name: str, p: int, rounds: int) -> None:
    check_closed_form(resolve(name), p, rounds * p)


def check_closed_form(recipe: ScheduleRecipe, p: int, m: int) -> None:
    schedule = training_schedule(recipe, p, m)
    bubble = simulate(schedule, [1.0] * schedule.stages, [2.0] * schedule.stages).bubble
    assert recipe.idle_share(p, m) == pytest.approx(bubble, abs=1e-12)


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_docstring_shows_the_drawing(name: str) -> None:
    check_drawing(resolve(name))


def check_drawing(recipe: ScheduleRecipe) -> None:
    doc = next(
        module.__doc__ or ""
        for module in [sys.modules[key] for key in sys.modules if key.startswith(f"{package.__name__}.")]
        if module.RECIPE is recipe
    )
    rows = [line.strip() for line in doc.splitlines() if re.match(r" +\d \|.*\|$", line)]
    micro_batches = 1 + max(map(int, re.findall(r"\d+", " ".join(row[3:] for row in rows))))
    schedule = training_schedule(recipe, len(rows), micro_batches)
    timeline = simulate(schedule, [1.0] * schedule.stages, [2.0] * schedule.stages)
    assert rows == draw_text(schedule, timeline).splitlines()


@pytest.mark.parametrize("name", BUILT_IN)
def test_only_a_recipe_that_says_so_depends_on_work(name: str) -> None:
    recipe, p, m = resolve(name), 3, 6
    stages = len(recipe.placement(p))
    uneven = {kind: [1.0] * (stages - 1) + [9.0] for kind in (Kind.FORWARD, Kind.BACKWARD_INPUT)}
    uneven |= {kind: [1.0] * stages for kind in (Kind.BACKWARD, Kind.BACKWARD_WEIGHT)}
    same = training_schedule(recipe, p, m, work=uneven) == training_schedule(recipe, p, m)
    assert same != recipe.depends_on_work


def test_work_is_not_passed_to_an_order_that_does_not_depend_on_it() -> None:
    seen: list[Work | None] = []

    def order(placement: Placement, micro_batches: int, work: Work | None) -> Sequence[Order]:
        seen.append(work)
        return [()] * len(placement)

    work = {Kind.FORWARD: [1.0]}
    for depends in (False, True):
        ScheduleRecipe("mine", order, depends_on_work=depends).orders((0,), 1, work)
    assert seen == [None, work]


@pytest.mark.parametrize("name", ["gpipe", "1f1b", "zb_h1", "zb_v"])
def test_the_number_of_stages_a_worker_is_fixed_unless_the_schedule_interleaves(name: str) -> None:
    recipe = resolve(name)
    usual = recipe.stages_per_worker
    assert recipe.placement(3) == recipe.placement(3, usual)
    assert len(recipe.placement(3)) == 3 * usual
    words = rf"layout\.virtual_stages=3, but schedule={name} has {usual} stages? a worker: use schedule=inter"
    with pytest.raises(UserError, match=words):
        recipe.placement(3, 3)


def test_placements() -> None:
    assert resolve("1f1b").placement(3) == (0, 1, 2)
    assert resolve("zb_v").placement(3) == (0, 1, 2, 2, 1, 0)
    assert resolve("interleaved").placement(2) == (0, 1, 0, 1)
    assert resolve("interleaved").placement(2, 3) == (0, 1, 0, 1, 0, 1)
    assert resolve("interleaved").placement(2, 1) == (0, 1)


def test_an_order_by_stage_follows_the_placement() -> None:
    orders = by_stage(gpipe)((2, 0, 1), 2, None)
    assert [order[0] for order in orders] == [Action(Kind.FORWARD, stage, 0) for stage in (1, 2, 0)]
    with pytest.raises(AssertionError, match="one stage a worker"):
        by_stage(gpipe)((0, 1, 0), 2, None)


# --- a new schedule is one file


def test_one_file_adds_a_schedule(with_snake: ScheduleRecipe) -> None:
    assert list(recipes()) == [*BUILT_IN, "snake"]
    check_schedule("snake")
    assert with_snake.placement(3) == (0, 1, 2, 2, 1, 0, 0, 1, 2)
    with pytest.raises(UserError, match="nor a file; did you mean snake"):
        resolve("snaek")


def test_the_docs_show_that_file() -> None:
    page = Path(__file__).parents[1] / "docs" / "schedules.md"
    _, _, code = (NEW / "snake.py").read_text().rpartition('"""\n\nfrom')
    assert f"```python\nfrom{code}```\n" in page.read_text()


@pytest.mark.parametrize("p", [1, 2, 3, 4])
def test_a_new_schedule_is_validated_and_simulated(with_snake: ScheduleRecipe, p: int) -> None:
    for m in (1, 2, 5):
        ties = [Tied(0, 3 * p - 1)]
        world = [training_schedule(with_snake, p, micro_batches, ties) for micro_batches in (m + 1, m)]
        validate(world, ties)
        validate([evaluation_schedule(world[0].placement, m)])
        check_closed_form(with_snake, p, m * p)
    if p % 2 == 0:
        layout = Layout.of(p, p, 2, layers=3 * p, place=with_snake.placement)
        validate([by_rank(world[0], layout)])


def test_a_new_schedule_is_drawn(with_snake: ScheduleRecipe) -> None:
    check_drawing(with_snake)


@pytest.mark.parametrize("fixture", ["tied", "skip", "encoder_decoder"])
def test_a_new_schedule_trains_like_1f1b_bit_for_bit(with_snake: ScheduleRecipe, fixture: str) -> None:
    layers = len(FIXTURES[fixture].build().layers)
    sizes = [1] * 5 + [layers - 5] if layers >= 6 else [1] * 2 + [layers - 2]  # on two workers, or on one
    results = []
    for schedule in ("1f1b", with_snake.name):
        pipeline = Pipeline(FIXTURES[fixture].build(), sizes, schedule)
        losses = pipeline.train(FIXTURES[fixture].micro_batches(), 4)
        results.append((losses, pipeline.gradients()))
    (losses, gradients), (losses_of_snake, gradients_of_snake) = results
    assert losses == losses_of_snake
    assert gradients.keys() == gradients_of_snake.keys()
    for key, gradient in gradients.items():
        assert gradient is not None
        assert torch.equal(gradient, gradients_of_snake[key]), key


def test_a_module_without_a_recipe_is_an_error(patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "forgotten.py").write_text("recipe = None\n")
    drop_in(tmp_path, patch)
    with pytest.raises(TypeError, match=r"recipes\.forgotten must define RECIPE = ScheduleRecipe"):
        recipes()


def test_two_schedules_with_one_name_are_an_error(patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "snake_again.py").write_text((NEW / "snake.py").read_text())
    drop_in(NEW, patch)
    drop_in(tmp_path, patch)
    with pytest.raises(ValueError, match=r"recipes\.snake_again: another schedule is named 'snake'"):
        recipes()
