"""The training loop: steps, validation, checkpoints, and a text at the end."""

import math
from pathlib import Path

from trainer.checkpoint.checkpoint import find_checkpoint
from trainer.config.schema import Config
from trainer.distributed.failure import print_resume_hint_when_terminated
from trainer.evaluation import evaluate
from trainer.generation import generate
from trainer.metrics.folder import RunFolder
from trainer.metrics.observer import Beginning, RunObserver
from trainer.metrics.observers import build_observers
from trainer.resume import restore, save
from trainer.run import Run
from trainer.step import TrainStep


def train(run: Run) -> None:
    """Train to the last step, from the newest checkpoint if there is one."""
    config = run.config
    folder = RunFolder(config, run.world)
    print_resume_hint_when_terminated(lambda: _how_to_resume(config, folder.checkpoints))
    step, samples_seen, origin = restore(run, folder)
    beginning = Beginning(step, last_step(run, step, samples_seen), origin)
    observers = build_observers(run, folder, beginning)
    try:
        observers.begin(run, beginning)
        train_step, saved = TrainStep(run, beginning.steps), step
        while step < beginning.steps:
            observers.step(train_step.run(step + 1, samples_seen))
            step, samples_seen = step + 1, samples_seen + config.batch.global_size
            if _due(step, config.eval.every) and step < beginning.steps:
                _validate(run, observers, step)
            if _due(step, config.checkpoint.every):
                observers.checkpoint(step, save(run, folder, step, samples_seen))
                saved = step
        _validate(run, observers, step)
        if saved != step:
            observers.checkpoint(step, save(run, folder, step, samples_seen))
        if (text := generate(run)) is not None:
            observers.message(f"the model writes:\n{text}")
        observers.end()
    except BaseException as error:
        observers.failure(error)
        raise
    run.world.barrier()  # a rank that left early would take Horovod away from the others


def _validate(run: Run, observers: RunObserver, step: int) -> None:
    loss = evaluate(run, run.config.eval.samples)
    if loss is not None:
        observers.validation(step, loss)


def last_step(run: Run, step: int, samples_seen: int) -> int:
    """Return the number of the last step: whichever of `train.steps` and `train.epochs` ends first."""
    train = run.config.train
    limits = [] if train.steps is None else [train.steps]
    if train.epochs is not None:
        samples = train.epochs * len(run.data.training) - samples_seen
        limits.append(step + math.ceil(samples / run.config.batch.global_size))
    return max(step, min(limits))


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _how_to_resume(config: Config, checkpoints: Path) -> str:
    newest = find_checkpoint("auto", checkpoints)
    if newest is None:
        return f"no checkpoint was saved yet (checkpoint.every={config.checkpoint.every})"
    resume = "" if config.checkpoint.resume == "auto" else " checkpoint.resume=auto"
    return f"rerun with run.dir={checkpoints.parent}{resume} to resume from {newest.name}"
