"""`python -m trainer.verify`: train a few steps as launched, and prove that the layout changed nothing."""

from typing import TYPE_CHECKING

from trainer.command import run_command
from trainer.config.schema import Config

if TYPE_CHECKING:
    from trainer.distributed.world import World


def main() -> None:
    """Verify as configured on the command line; exit with 1 if the layout changed the training."""
    run_command(_verify, prepare=_prepare)


def _prepare(config: Config) -> None:
    if config.train.steps is None and config.train.epochs is None:
        config.train.steps = config.verify.steps
    config.train.deterministic = True  # sums in a varying order cannot have equal bits


def _verify(config: Config, world: "World") -> None:
    from trainer.run import Run  # noqa: PLC0415  (after the configuration has been checked)
    from trainer.verify.verification import verify  # noqa: PLC0415

    verified = verify(Run(config, world))
    world.barrier()  # a rank that exits early would shut Horovod down for the others
    if not verified:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
