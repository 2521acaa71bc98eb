"""How many ranks hold one model, by the configuration that the command line asks for."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.distributed.layout import Layout

if TYPE_CHECKING:
    from trainer.config.schema import Config

# Commands whose words are the configuration of a run; those with True take that of an earlier run.
_COMMANDS = {"trainer": False, "trainer.verify": False, "trainer.evaluate": True, "trainer.generate": True}
_ENOUGH = 1 << 30  # layers: how many there are is the model's to say


@dataclass(frozen=True)
class Asked:
    """What the configuration says of a launch.

    Attributes:
        configs: The configurations; several in a sweep; none of a command of another kind.
        words: The command line.
    """

    configs: tuple["Config", ...] = ()
    words: tuple[str, ...] = ()

    @property
    def ranks(self) -> int | None:
        """Return the fewest ranks that fit, or None where any number does."""
        numbers = [
            config.layout.stages // max(1, config.layout.devices_per_rank)
            for config in self.configs
            if isinstance(config.layout.stages, int)
        ]
        return max(numbers, default=None)

    @property
    def run_dir(self) -> Path | None:
        """Return the run's folder, if the user gives it."""
        folders = [config.run.dir for config in self.configs]
        if not self.configs:
            folders = [word.partition("=")[2] for word in self.words if word.startswith("run.dir=")]
        return Path(folders[0]) if folders and folders[0] is not None else None

    def group(self, world: int) -> int:
        """Return how many ranks hold one model in a world; of a sweep, the largest number.

        Raises:
            UserError: As a run of that size would.
        """
        layouts = [
            Layout.of(world, config.layout.stages, config.layout.devices_per_rank, _ENOUGH)
            for config in self.configs
        ]
        return max((layout.ranks_per_group for layout in layouts), default=1)


def read(module: str, words: Sequence[str]) -> Asked:
    """Return what the command line asks for; an option such as `--cfg job` is answered and ends this process.

    Raises:
        UserError: The configuration is wrong.
    """
    if module not in _COMMANDS:
        return Asked(words=tuple(words))
    from trainer.config.compose import ComposeError, compose, explain  # noqa: PLC0415  (half a second)

    prepare = _keep if module == "trainer" else _set_steps
    saved = sys.argv
    sys.argv = [saved[0], *words]
    try:
        return Asked(tuple(compose(prepare, from_run=_COMMANDS[module]).configs))
    except ComposeError as error:
        raise explain(error) from error
    finally:
        sys.argv = saved


def _set_steps(config: "Config") -> None:
    if config.train.steps is None and config.train.epochs is None:
        config.train.steps = 1  # as the commands that are not given any do


def _keep(config: "Config") -> None:
    """Train as configured."""
