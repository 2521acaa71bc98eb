"""`python -m trainer`: trains a model."""

from typing import TYPE_CHECKING

from trainer.distributed.notice import listen

if TYPE_CHECKING:
    from trainer.config.schema import Config
    from trainer.distributed.world import World


def main() -> None:
    """Train as configured on the command line."""
    listen()  # before the imports, which take a second
    from trainer.command import run_command  # noqa: PLC0415

    run_command(_train)


def _train(config: "Config", world: "World") -> None:
    from trainer.run import Run  # noqa: PLC0415
    from trainer.train import train  # noqa: PLC0415  (imports torch: only once the configuration is valid)

    train(Run(config, world))


if __name__ == "__main__":
    main()
