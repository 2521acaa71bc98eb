"""`python -m trainer.plan ranks=8 memory=24GiB ...`: every layout that fits, before anything is launched.

It needs no launcher, no MPI and no Horovod, and builds nothing: models are costed on torch's meta device. The
command line is that of `python -m trainer`, and what it fixes (`layout.stages=4`, `schedule=zb_v`) stays
fixed. Three words are short for keys: `ranks` for `plan.ranks`, `memory` for `plan.memory`, and
`cluster=FILE` for what `python -m trainer.launch --check` has measured.
"""

import sys
from typing import TYPE_CHECKING

from trainer.command import run_command
from trainer.config.schema import Config
from trainer.distributed.failure import fail
from trainer.errors import UserError
from trainer.launch.network import read_overrides

if TYPE_CHECKING:
    from trainer.distributed.world import World

_SHORT = {"ranks": "plan.ranks", "memory": "plan.memory"}


def main() -> None:
    """Plan as configured on the command line."""
    try:
        sys.argv[1:] = [word for argument in sys.argv[1:] for word in _long(argument)]
    except UserError as error:
        fail(error)
    run_command(_plan, with_ranks=False, prepare=_prepare)


def _prepare(config: Config) -> None:
    if config.train.steps is None and config.train.epochs is None:
        config.train.steps = 1  # a plan is of one step


def _long(argument: str) -> list[str]:
    key, equals, value = argument.partition("=")
    if key == "cluster" and equals:
        return read_overrides(value)
    return [f"{_SHORT.get(key, key)}{equals}{value}"]


def _plan(config: Config, _world: "World | None") -> None:
    from trainer.plan.report import report  # noqa: PLC0415  (imports torch: after the configuration is checked)

    given = [argument for argument in sys.argv[1:] if "=" in argument and not argument.startswith("-")]
    print(report(config, given))


if __name__ == "__main__":
    main()
