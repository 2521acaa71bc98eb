"""Restores the state that a run starts from, and saves checkpoints to resume from."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from trainer.checkpoint.checkpoint import Checkpoint, Restoration
from trainer.checkpoint.expected import Expected, first_step
from trainer.checkpoint.folders import candidates, remove_old, remove_partial
from trainer.checkpoint.save import save_checkpoint
from trainer.checkpoint.schema import DamagedError, Progress
from trainer.checkpoint.warm_start import warm_start
from trainer.distributed.world import versions
from trainer.errors import TrainingError, UserError
from trainer.metrics.folder import RunFolder
from trainer.optim.loss_scale import LossScale
from trainer.pipeline.not_finite import all_finite
from trainer.run import Run

_log = logging.getLogger(__name__)


def restore(run: Run, folder: RunFolder) -> tuple[int, int, str]:
    """Load the checkpoint that the run starts from, if any.

    With `checkpoint.resume=auto` that is the newest one that is whole; damaged ones are passed over.

    Returns:
        The steps done, the samples seen, and a phrase on their origin for the log; empty for new weights.

    Raises:
        UserError: The checkpoint does not fit the run, or there are only damaged ones.
    """
    found = candidates(run.config.checkpoint.resume, folder.checkpoints)
    # All ranks must start from the same one, even if a network file system lists files late.
    run.world.agree("checkpoint", {"checkpoint.resume": found[0].name if found else None})
    if run.world.rank == 0:
        remove_partial(folder.checkpoints)
    if not found:
        folder.forget_after(0)
        warm = warm_start(run.config.checkpoint, run.layers, run.model)
        run.world.agree("checkpoint", {"checkpoint.warm_start": warm and warm.name})
        return 0, 0, f", warm start from {warm}" if warm else ""
    names = run.world.all_gather_objects([path.name for path in found])[0]
    path, progress = _restore_first_whole(run, [found[0].with_name(name) for name in names])
    if run.loss_scale is not None and progress.loss_scale is not None:
        run.loss_scale = LossScale(**progress.loss_scale)
    run.replication.restore(progress.replication)
    folder.forget_after(progress.step)
    _log.info("resumed from %s", path)
    return progress.step, progress.samples, f", resumed after step {progress.step}"


def _restore_first_whole(run: Run, paths: Sequence[Path]) -> tuple[Path, Progress]:
    """Load the first checkpoint that no rank finds damaged; return its path and its progress.

    Raises:
        UserError: On every rank alike: all of them are damaged. On any rank: one does not fit the run.
    """
    expected = first_step(run.optimizer)
    first_problem = None
    for path in paths:
        ready, problem = None, None
        try:
            ready = _prepare(run, path, expected)
        except DamagedError as error:
            problem = str(error)
        problem = next(filter(None, run.world.all_gather_objects(problem)), None)
        if problem is None and ready is not None:
            restoration, progress = ready
            restoration.apply(run.optimizer)
            return path, progress
        first_problem = first_problem or problem
        if len(paths) > 1:
            _log.warning("passed over: %s", problem)
            if run.world.rank == 0 and path != paths[-1]:
                print(f"trainer: passed over a checkpoint: {problem}", file=sys.stderr, flush=True)
    more = f"; none of the {len(paths)} checkpoints beside it is whole" if len(paths) > 1 else ""
    raise UserError(f"{first_problem}{more}; checkpoint.resume=none starts from new weights")


def _prepare(run: Run, path: Path, expected: Expected) -> tuple[Restoration, Progress]:
    """Read and check what this rank needs of a checkpoint.

    Raises:
        DamagedError: It is damaged.
        UserError: It does not fit the run.
    """
    checkpoint = Checkpoint(path)
    progress = checkpoint.progress()
    checkpoint.check_model(run.model.parts)
    _check_data(run, path, progress)
    return checkpoint.prepare(run.layers, run.optimizer, run.config.optimizer.name, expected), progress


def _check_data(run: Run, path: Path, progress: Progress) -> None:
    """Raise a UserError unless the checkpoint's position in its data is the same in this run's data."""
    seed, data = run.config.train.seed, run.data.fingerprint
    if progress.seed != seed:
        raise UserError(
            f"the checkpoint {path} was made with train.seed={progress.seed}, but this run has "
            f"train.seed={seed}, which orders the data differently: set train.seed={progress.seed}"
        )
    if progress.data not in (data, None):
        raise UserError(
            f"the checkpoint {path} was made with other data (fingerprint {progress.data}, here {data}): "
            f"its position, after {progress.samples} samples, is meaningless here; to train its weights on "
            f"new data, start a new run (another run.dir) with checkpoint.warm_start={path}"
        )


def save(run: Run, folder: RunFolder, step: int, samples_seen: int) -> Path:
    """Write a checkpoint; return its folder.

    The first replica writes it: the others hold the same state, except for sharded state.

    Raises:
        UserError: It cannot be written.
    """
    _check_finite(run, step)
    config, gathers = run.config, run.replication.gathers_state
    progress = Progress(
        step,
        samples_seen,
        config.train.seed,
        config.optimizer.name,
        versions(),
        run.data.fingerprint,
        None if run.loss_scale is None else asdict(run.loss_scale),
        run.replication.state(),
    )
    if run.replica == 0 or gathers:
        save_checkpoint(
            folder.checkpoints,
            run.layers,
            run.optimizer,
            progress,
            run.groups.model_parallel,
            replicas=run.groups.data_parallel if gathers else None,
        )
        if run.world.rank == 0:
            remove_old(folder.checkpoints, config.checkpoint.keep, step)
    return folder.checkpoint(step)


def _check_finite(run: Run, step: int) -> None:
    """Raise a TrainingError unless all weights are finite: no checkpoint is removed for one that is not."""
    mine = [layer.name for layer in run.layers if not all_finite(layer.module.parameters())]
    everyone = run.world.all_gather_objects(mine)
    for rank, names in enumerate(everyone):
        if names:
            raise TrainingError(
                f"the weights of layer {names[0]!r} (rank {rank}) are not finite after step {step}: no "
                "checkpoint is saved of them, and older ones stay. Lower optimizer.lr, or set optimizer.clip"
            )
