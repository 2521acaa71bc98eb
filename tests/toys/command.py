"""A command, added as a contributor adds one: `python -m tests.toys.command KEY=VALUE ...`."""

from trainer.command import run_command
from trainer.config.schema import Config
from trainer.distributed.world import World


def main() -> None:
    run_command(_count)


def _count(config: Config, world: World) -> None:
    ranks = world.all_gather_objects(world.rank)
    if world.rank == 0:
        print(f"{config.model.name} on ranks {ranks}", flush=True)
    world.barrier()


if __name__ == "__main__":
    main()
