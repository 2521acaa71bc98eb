"""The training loop: steps, validation, checkpoints, what a person sees, and a text at the end."""

import logging
import math
from dataclasses import asdict
from pathlib import Path

from trainer.checkpoint import Checkpoint, Progress, find_checkpoint, remove_old, save_checkpoint
from trainer.config import Config
from trainer.errors import UserError
from trainer.evaluation import evaluate
from trainer.failure import tell_when_ended
from trainer.forecast import Forecast
from trainer.generation import generate
from trainer.loss_scale import LossScale
from trainer.metrics.folder import RunFolder
from trainer.metrics.progress import Display, build_display
from trainer.metrics.table import headline, layout_table
from trainer.metrics.trace import build_trace
from trainer.optimization import state_bytes
from trainer.run import Run
from trainer.schedule.draw import draw_text
from trainer.step import Stepper, StepResult
from trainer.warm_start import warm_start
from trainer.world import versions

_log = logging.getLogger(__name__)


def train(run: Run) -> None:
    """Train to the last step, from the newest checkpoint if there is one."""
    config = run.config
    folder = RunFolder(config, run.world)
    tell_when_ended(lambda: _how_to_go_on(config, folder))
    step, position, came_from = _restore(run, folder)
    steps = last_step(run, step, position)
    unit = "samples" if run.data.vocabulary is None else "tokens"
    display = build_display(config.progress, rank=run.world.rank, start=step, steps=steps, unit=unit)
    display.say(layout_table(run))
    for cost in run.cut.costs:
        if cost.warning:
            display.say(f"note: layer {cost.name}: {cost.warning}")
    display.say(f"run folder: {folder.path}{came_from}")
    stepper, forecast = Stepper(run, steps), Forecast(run)
    trace = build_trace(run)
    folder.write_text("schedule.txt", draw_text(run.schedule(len(run.micro_batches)), forecast.timeline))
    first, saved, buffers = step + 1, step, run.statistics.versions_of_others()
    while step < steps:
        result = stepper.run(step + 1, position)
        step, position = step + 1, position + config.batch.global_size
        _write(folder, step, result, forecast.timeline.bubble, config.batch.global_size)
        _show(display, step, result)
        trace.add(step)
        forecast.add(step)
        if step == first:
            _note_changed_buffers(run, display, buffers)
            sizes = state_bytes(run.optimizer), run.shards.own_bytes, run.shards.bytes
            words = "optimizer state: %s bytes, for %s of %s bytes of parameters that train"
            _log.info(words, *(f"{size:,}" for size in sizes))
        if _due(step, config.eval.every) and step < steps:
            _validate(run, folder, display, step)
        if _due(step, config.checkpoint.every):
            _save(run, folder, step, position)
            saved = step
    _validate(run, folder, display, step)
    if saved != step:
        _save(run, folder, step, position)
    trace.write(folder.path / "trace.json")
    timeline = forecast.step_timeline(headline(run))
    if timeline is not None and run.world.rank == 0:
        timeline.save(folder.path / "timeline.json")
    text = generate(run)
    if text is not None:
        display.say(f"the model writes:\n{text}")
    display.close()
    run.world.barrier()  # a rank that left early would take Horovod away from the others


def _how_to_go_on(config: Config, folder: RunFolder) -> str:
    newest = find_checkpoint("auto", folder.checkpoints)
    if newest is None:
        return f"no checkpoint was saved yet (checkpoint.every={config.checkpoint.every})"
    resume = "" if config.checkpoint.resume == "auto" else " checkpoint.resume=auto"
    return f"the same command with run.dir={folder.path}{resume} goes on from {newest.name}"


def last_step(run: Run, step: int, position: int) -> int:
    """Return the number of the last step: whichever of `train.steps` and `train.epochs` ends first."""
    train = run.config.train
    limits = [] if train.steps is None else [train.steps]
    if train.epochs is not None:
        samples = train.epochs * len(run.data.training) - position
        limits.append(step + math.ceil(samples / run.config.batch.global_size))
    return max(step, min(limits))


def _note_changed_buffers(run: Run, display: Display, before: dict[str, tuple[int, int]]) -> None:
    """Say which buffers a step has changed that are nobody's running statistics."""
    now = run.statistics.versions_of_others()
    everyone = run.world.all_gather_objects(
        [name for name, version in now.items() if version != before[name]]
    )
    for name in sorted({name for theirs in everyone for name in theirs}):
        display.say(
            f"note: {name} changes in the forward pass: it follows the layout, and differs between replicas"
        )


def _show(display: Display, step: int, result: StepResult) -> None:
    display.step(step, result)
    if result.skipped:
        scale = result.loss_scale
        display.say(f"step {step} changes nothing: its gradient overflows with a loss scale of {scale:g}")


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _restore(run: Run, folder: RunFolder) -> tuple[int, int, str]:
    """Load the checkpoint that the run starts from; return its step and position, and words on where from."""
    path = find_checkpoint(run.config.checkpoint.resume, folder.checkpoints)
    # Every rank must start from the same one, also where a file system shows files late.
    run.world.agree("checkpoint", {"checkpoint.resume": path and path.name})
    if path is None:
        folder.forget_after(0)
        warm = warm_start(run.config.checkpoint, run.layers, run.model)
        run.world.agree("checkpoint", {"checkpoint.warm_start": warm and warm.name})
        return 0, 0, f", warm start from {warm}" if warm else ""
    checkpoint = Checkpoint(path)
    checkpoint.check_model(run.model.layers)
    progress = checkpoint.progress()
    _check_data(run, path, progress)
    checkpoint.restore(run.layers, run.optimizer, run.config.optimizer.name)
    if run.loss_scale is not None and progress.loss_scale is not None:
        run.loss_scale = LossScale(**progress.loss_scale)
    folder.forget_after(progress.step)
    _log.info("resumed from %s", path)
    return progress.step, progress.samples, f", resumed behind step {progress.step}"


def _check_data(run: Run, path: Path, progress: Progress) -> None:
    """Raise a UserError unless a position in the checkpoint's data is the same place in this run's."""
    seed, data = run.config.train.seed, run.data.fingerprint
    if progress.seed != seed:
        raise UserError(
            f"the checkpoint {path} was made with train.seed={progress.seed}, but this run has "
            f"train.seed={seed}: its data would come in another order"
        )
    if progress.data not in (data, None):
        raise UserError(
            f"the checkpoint {path} was made with other data (fingerprint {progress.data}, here {data}): "
            f"its position there, behind {progress.samples} samples, would mean nothing here; to train its "
            f"weights on new data, start a new run (another run.dir) with checkpoint.warm_start={path}"
        )


def _save(run: Run, folder: RunFolder, step: int, position: int) -> None:
    """Write a checkpoint: the first replica does it; the others have the same, but for sharded state."""
    sharded = run.shards.number > 1
    if run.replica == 0 or sharded:
        config = run.config
        progress = Progress(
            step,
            position,
            config.train.seed,
            config.optimizer.name,
            versions(),
            run.data.fingerprint,
            None if run.loss_scale is None else asdict(run.loss_scale),
        )
        save_checkpoint(
            folder.checkpoints,
            run.layers,
            run.optimizer,
            progress,
            run.groups.model_parallel,
            replicas=run.groups.data_parallel if sharded else None,
        )
        if run.world.rank == 0:
            remove_old(folder.checkpoints, config.checkpoint.keep)


def _validate(run: Run, folder: RunFolder, display: Display, step: int) -> None:
    loss = evaluate(run, run.config.eval.samples)
    folder.write(step=step, val_loss=loss)
    display.say(f"step {step}  validation loss {loss:.4f}")


def _write(folder: RunFolder, step: int, result: StepResult, predicted: float, samples: int) -> None:
    scaling = {"loss_scale": result.loss_scale, "skipped": result.skipped}
    folder.write(
        step=step,
        loss=result.loss,
        grad_norm=result.grad_norm,
        lr=result.lr,
        step_seconds=result.seconds,
        samples_per_second=samples / result.seconds,
        bubble=result.bubble,
        bubble_predicted=predicted,
        cpu_seconds=list(result.cpu_seconds),
        peak_memory_bytes=list(result.peak_memory),
        **(scaling if result.loss_scale is not None else {}),
    )
