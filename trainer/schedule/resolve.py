"""From what the user writes, `schedule=...`, to the one object that the rest of the trainer uses.

A built-in schedule is a module of `trainer.schedule.recipes` that defines `RECIPE`. This module finds them by
scanning that package: adding a schedule needs no other change.
"""

from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import MappingProxyType

from trainer.errors import UserError, suggest
from trainer.schedule import recipes as package
from trainer.schedule.from_file import read_recipe
from trainer.schedule.recipe import ScheduleRecipe


@lru_cache(maxsize=1)
def recipes() -> Mapping[str, ScheduleRecipe]:
    """Return the built-in recipes by name: fewer stages a worker first, then older ones.

    Raises:
        TypeError: A module of the package defines no `RECIPE`.
        ValueError: Two modules use one name.
    """
    found: dict[str, ScheduleRecipe] = {}
    for module in sorted(each.name for each in iter_modules(package.__path__)):
        recipe = getattr(import_module(f"{package.__name__}.{module}"), "RECIPE", None)
        if not isinstance(recipe, ScheduleRecipe):
            raise TypeError(f"{package.__name__}.{module} must define RECIPE = ScheduleRecipe(...)")
        if recipe.name in found:
            raise ValueError(f"{package.__name__}.{module}: another schedule is named {recipe.name!r}")
        found[recipe.name] = recipe
    ordered = sorted(found.values(), key=lambda recipe: (recipe.stages_per_worker, recipe.year, recipe.name))
    return MappingProxyType({recipe.name: recipe for recipe in ordered})


class RecipeNames(Collection[str]):
    """The names of the built-in recipes, looked up whenever they are asked for."""

    def __contains__(self, name: object) -> bool:
        return name in recipes()

    def __iter__(self) -> Iterator[str]:
        return iter(recipes())

    def __len__(self) -> int:
        return len(recipes())


def check_schedule(schedule: str) -> None:
    """Check that a schedule exists, without reading its file.

    Raises:
        UserError: It is neither the name of a built-in schedule nor a file.
    """
    if schedule not in recipes() and not Path(schedule).is_file():
        names = recipes().keys()
        raise UserError(
            f"schedule={schedule} is not one of {', '.join(names)}, nor a file{suggest(schedule, names)}"
        )


def resolve(schedule: str) -> ScheduleRecipe:
    """Return the recipe of a schedule; reads its file, if it is one.

    Args:
        schedule: The name of a built-in schedule, or the path of a file.

    Raises:
        UserError: It is neither, or the file cannot be read.
    """
    check_schedule(schedule)
    recipe = recipes().get(schedule)
    return read_recipe(schedule) if recipe is None else recipe
