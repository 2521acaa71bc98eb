"""`python -m tests.support.mapped KEY=VALUE ...`: trains, then prints which ranks opened a token file."""

from pathlib import Path

from trainer.command import run_command
from trainer.config.schema import Config
from trainer.distributed.world import World


def main() -> None:
    run_command(_train)


def _train(config: Config, world: World) -> None:
    from trainer.run import Run  # noqa: PLC0415
    from trainer.train import train  # noqa: PLC0415

    run = Run(config, world)
    train(run)
    opened = ".tokens" in Path("/proc/self/maps").read_text()
    everyone = world.all_gather_objects(opened)
    if world.rank == 0:
        print(f"opened: {everyone}", flush=True)
    world.barrier()


if __name__ == "__main__":
    main()
