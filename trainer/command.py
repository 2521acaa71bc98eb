"""What all commands share: the environment, the configuration, the world, and one exit for all ranks.

[1] the environment    set before any library that reads it is imported
[2] the configuration  composed by Hydra and checked, without torch or MPI
[3] the world          MPI starts
[4] the job
"""

import gc
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from trainer.config.compose import ComposeError, compose, explain
from trainer.config.run_dir import place_sweep
from trainer.config.schema import Config
from trainer.distributed import environment, launcher
from trainer.distributed.failure import fail
from trainer.distributed.heartbeat import heartbeat
from trainer.distributed.limits import prepare_process
from trainer.distributed.notice import listen, stop_listening
from trainer.distributed.oversubscription import request_long_time_slices
from trainer.errors import StoppedEarly
from trainer.watch.start import configure, meet, start

if TYPE_CHECKING:
    from trainer.distributed.world import World

Job = Callable[[Config, Any], None]
Prepare = Callable[[Config], None]


def run_command(
    job: Job, *, with_ranks: bool = True, prepare: Prepare = lambda _: None, from_run: bool = False
) -> None:
    """Run a job on every rank with the configuration of the command line; on failure, exit the process.

    Args:
        job: Called with each configuration and the world.
        with_ranks: Whether it needs the other ranks; if not, MPI does not start, and the job gets no world.
        prepare: Sets in each configuration what the job does not need to be given, before the check.
        from_run: Whether it uses a trained model: `run.dir=RUN` then gives the configuration of that run.

    Exit codes: 0 success; 2 invalid user input; 75 stopped early with everything saved; 1 any other failure;
    130 interrupted.
    """
    listen()
    try:
        if with_ranks:
            start()
        run_jobs(job, with_ranks=with_ranks, prepare=prepare, from_run=from_run)
    except SystemExit:
        raise
    except BaseException as error:
        if not isinstance(error, StoppedEarly):
            stop_listening()
        fail(error)


def run_jobs(
    job: Job, *, with_ranks: bool = True, prepare: Prepare = lambda _: None, from_run: bool = False
) -> None:
    """Run a job on this rank with the configuration of the command line; raise any error.

    Args:
        job: Called with each configuration and the world.
        with_ranks: As of `run_command`.
        prepare: As of `run_command`.
        from_run: As of `run_command`.

    Raises:
        UserError: The command line, the configuration or the job's input is invalid.
    """
    gc.disable()
    try:
        prepare_process()  # [1]
        launcher.settle()
        environment.prepare()
        if environment.shares_cores():
            request_long_time_slices()
        environment.keep_freed_memory()
        composed = compose(prepare, from_run=from_run)  # [2]
        if composed.sweep is not None:
            place_sweep(composed.configs, composed.sweep, _world())
        for config in composed.configs:
            configure(config.train)
            environment.match_horovod(config.train.stall_seconds, config.train.busy_seconds)
            _postpone_compiler()
            world = _world() if with_ranks else None  # [3]
            _collect_garbage_again()
            job(config, world)  # [4]
        heartbeat.leave()
    except ComposeError as error:
        raise explain(error) from error
    finally:
        gc.enable()


def _collect_garbage_again() -> None:
    """Resume collections, without what start-up made: it is kept, and each would go through all of it."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def _postpone_compiler() -> None:
    from trainer.distributed.lazy_compiler import postpone_compiler  # noqa: PLC0415  (imports torch, too)

    postpone_compiler()


@lru_cache(maxsize=1)
def _world() -> "World":
    """Start MPI, once per process: the runs of a sweep share it."""
    from trainer.distributed.world import World  # noqa: PLC0415  (imports torch: only once the configuration is valid)

    world = World()
    meet(world)
    return world
