"""The training loop: steps, checkpoints, validation, and a text at the end.

What is due at the end of a step is saved before it is validated, for validation runs code that training does
not. A run also saves when a signal asks it to stop (`trainer.distributed.notice`), and then stops.
"""

import math
import time
from pathlib import Path

import numpy as np

from trainer.checkpoint.checkpoint import find_checkpoint
from trainer.config.schema import Config
from trainer.distributed import notice
from trainer.distributed.heartbeat import Phase, heartbeat
from trainer.distributed.requests import Request
from trainer.errors import StoppedEarly
from trainer.evaluation import evaluate
from trainer.generation import generate
from trainer.metrics.folder import RunFolder
from trainer.metrics.observer import Beginning, RunObserver
from trainer.metrics.observers import build_observers
from trainer.resume import restore, save
from trainer.run import Run
from trainer.step import TrainStep


def train(run: Run) -> None:
    """Train to the last step, from the newest checkpoint if there is one.

    Raises:
        StoppedEarly: On every rank alike: a signal asked the run to stop, and it has saved its last step.
    """
    folder = RunFolder(run.config, run.world)
    with heartbeat.during(Phase.RESTORE):
        step, samples_seen, origin = restore(run, folder)
    beginning = Beginning(step, last_step(run, step, samples_seen), origin)
    observers = build_observers(run, folder, beginning)
    try:
        observers.begin(run, beginning)
        loop = _Loop(run, folder, observers, beginning, samples_seen)
        loop.run()
        observers.end()
    except BaseException as error:
        observers.failure(error)
        raise
    finally:
        run.reader.end()
    notice.end_training(stopped=loop.stopped_by > 0)
    run.world.barrier()  # a rank that left early would take Horovod away from the others
    if loop.stopped_by:
        name, hint = notice.name_of(loop.stopped_by), _how_to_resume(run.config, folder.checkpoints)
        raise StoppedEarly(f"stopped by {name} after step {loop.step}, which is saved; {hint}")


class _Loop:
    """The steps of a run, and what is due between them.

    Attributes:
        step: The number of steps done.
        stopped_by: The signal that ended the loop early, or 0.
    """

    def __init__(
        self, run: Run, folder: RunFolder, observers: RunObserver, beginning: Beginning, samples_seen: int
    ) -> None:
        self.step = beginning.step
        self.stopped_by = 0
        self._run, self._folder, self._observers = run, folder, observers
        self._last, self._samples_seen = beginning.steps, samples_seen
        self._train_step = TrainStep(run, beginning.steps)
        self._train_step.requests.ask = self._ask
        self._saved, self._saved_at = beginning.step, time.monotonic()

    def run(self) -> None:
        """Train, save and validate to the end, or until a signal asks to stop."""
        config, checkpoints = self._run.config, self._folder.checkpoints
        notice.begin_training(lambda: _how_to_resume(config, checkpoints))
        while self.step < self._last and not self.stopped_by:
            result = self._train_step.run(self.step + 1, self._samples_seen)
            heartbeat.enter(Phase.REPORT)
            self._observers.step(result)
            self.step += 1
            self._samples_seen += config.batch.global_size
            self._after_step(self._train_step.requests.agreed)
        if not self.stopped_by:
            self._validate()
        with heartbeat.during(Phase.GENERATE):
            text = None if self.stopped_by else generate(self._run)
        if text is not None:
            self._observers.message(f"the model writes:\n{text}")

    def _after_step(self, agreed: Request) -> None:
        """Do what is due after a step; the end of the run validates after its last step."""
        config, self.stopped_by = self._run.config, agreed.stop
        due = _due(self.step, config.checkpoint.every) or self.step == self._last
        if due or agreed.save or agreed.stop:
            self._save()
        if _due(self.step, config.eval.every) and self.step < self._last and not self.stopped_by:
            self._validate()

    def _save(self) -> None:
        with heartbeat.during(Phase.SAVE):
            path = save(self._run, self._folder, self.step, self._samples_seen)
        self._observers.checkpoint(self.step, path)
        self._saved, self._saved_at = self.step, time.monotonic()
        self._train_step.requests.saved()
        self._look_for_notice()

    def _validate(self) -> None:
        """Validate; a signal during that stops the run."""
        with heartbeat.during(Phase.VALIDATE):
            result = evaluate(self._run, self._run.config.eval.samples)
        if result is not None:
            self._observers.validation(self.step, result)
        self._look_for_notice()
        if self.stopped_by and self._saved != self.step:
            self._save()

    def _look_for_notice(self) -> None:
        """Agree now whether a signal has come: a checkpoint or a validation can take longer than a step."""
        world = self._run.world
        signals = world.all_gather(np.array([notice.received()]), [1] * world.size)
        self.stopped_by = max(self.stopped_by, int(signals.max()))

    def _ask(self) -> Request:
        """Return what this rank asks of all ranks; the clock of rank 0 says when a checkpoint is due."""
        seconds = 60 * self._run.config.checkpoint.minutes
        waited = time.monotonic() - self._saved_at
        due = self._run.world.rank == 0 and 0 < seconds <= waited
        return Request(stop=notice.received(), save=due)


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
        minutes, every = config.checkpoint.minutes, config.checkpoint.every
        return f"no checkpoint was saved yet (checkpoint.minutes={minutes:g}, checkpoint.every={every})"
    resume = "" if config.checkpoint.resume == "auto" else " checkpoint.resume=auto"
    return f"rerun with run.dir={checkpoints.parent}{resume} to resume from {newest.name}"
