"""The observers of every run, in the order in which they are called."""

import logging
from pkgutil import iter_modules

from trainer.checkpoint.resumable import check_resumable
from trainer.config.import_path import load
from trainer.errors import UserError, suggest
from trainer.evaluation import Validation
from trainer.metrics import loggers
from trainer.metrics.folder import RunFolder
from trainer.metrics.forecast import Forecast
from trainer.metrics.headline import layout_table
from trainer.metrics.observer import Beginning, Observers, RunObserver
from trainer.metrics.progress import Display, build_display
from trainer.metrics.trace import Trace
from trainer.metrics.watchdog import Watchdog
from trainer.optim.build import state_bytes
from trainer.plan.costs import notes
from trainer.run import Run, changing_buffers
from trainer.schedule.draw import draw_text
from trainer.step import StepResult

_log = logging.getLogger(__name__)


def build_observers(run: Run, folder: RunFolder, beginning: Beginning) -> Observers:
    """Return the observers of a run; the same ones on every rank."""
    forecast = Forecast(run, folder.path / "timeline.json")
    samples = run.config.batch.global_size if run.data.vocabulary is None else None
    display = build_display(
        run.config.progress, rank=run.world.rank, start=beginning.step, steps=beginning.steps, samples=samples
    )
    observers: list[RunObserver] = [
        MetricsFile(run, folder, forecast),  # before the forecast, whose next prediction is of later steps
        Shown(display, folder),
        forecast,
    ]
    if run.config.run.trace:
        observers.append(Trace(run, folder.path / "trace.json"))
    observers += [FirstStep(run, display), Resumable(run), Watchdog(folder)]
    observers += [build_logger(name, run, folder) for name in run.config.logger]
    return Observers([*observers, Closing(folder)])


def build_logger(name: str, run: Run, folder: RunFolder) -> RunObserver:
    """Return a logger: a module of `trainer.metrics.loggers`, or what an import path names.

    Raises:
        UserError: There is none of that name, or it does not return a `RunObserver`.
    """
    known = sorted(module.name for module in iter_modules(loggers.__path__))
    if ":" in name:
        target = name
    elif name in known:
        target = f"{loggers.__name__}.{name}:build"
    else:
        raise UserError(
            f"logger={name} is not one of {', '.join(known)}, nor an import path, package.module:callable"
            f"{suggest(name, known)}"
        )
    logger = load(target, "logger")(run, folder)
    if not isinstance(logger, RunObserver):
        raise UserError(
            f"logger={name} returned {type(logger).__name__}: it must return a "
            "trainer.metrics.observer.RunObserver"
        )
    return logger


class MetricsFile(RunObserver):
    """Writes the numbers of steps and validations, and the schedule as predicted.

    Args:
        run: The run.
        folder: Its folder.
        forecast: Predicts the bubble.
    """

    def __init__(self, run: Run, folder: RunFolder, forecast: Forecast) -> None:
        self._run = run
        self._folder = folder
        self._forecast = forecast

    def begin(self, run: Run, beginning: Beginning) -> None:
        """Draw the schedule."""
        self._folder.write_text("schedule.txt", draw_text(run.schedule, self._forecast.timeline))

    def step(self, result: StepResult) -> None:
        """Write a step's numbers."""
        summary = result.summary
        scaling = {} if result.loss_scale is None else {"loss_scale": result.loss_scale}
        if result.skipped or result.loss_scale is not None:
            scaling["skipped"] = result.skipped
        self._folder.write(
            step=result.step,
            loss=summary.loss,
            grad_norm=summary.grad_norm,
            lr=result.lr,
            step_seconds=result.seconds,
            samples_per_second=self._run.config.batch.global_size / result.seconds,
            bubble=result.bubble,
            bubble_predicted=self._forecast.timeline.bubble,
            cpu_seconds=list(summary.cpu_seconds),
            peak_memory_bytes=list(summary.peak_memory),
            **scaling,
        )

    def validation(self, step: int, result: Validation) -> None:
        """Write a validation's loss and metrics."""
        metrics = {f"val_{name}": value for name, value in result.metrics.items()}
        self._folder.write(step=step, val_loss=result.loss, **metrics)


class Shown(RunObserver):
    """What a person sees.

    Args:
        display: Shows it.
        folder: The run's folder, which it names.
    """

    def __init__(self, display: Display, folder: RunFolder) -> None:
        self._display = display
        self._folder = folder

    def begin(self, run: Run, beginning: Beginning) -> None:
        """Show who holds what, and where the run starts from."""
        self._display.say(layout_table(run))
        for note in (*run.data.notes, *run.model.notes, *notes(run.plan.partition.costs)):
            self._display.say(f"note: {note}")
        if not len(run.data.validation):
            self._display.say("note: the data has no validation samples: there is no validation")
        self._display.say(f"run folder: {self._folder.path}{beginning.origin}")

    def step(self, result: StepResult) -> None:
        """Show a step."""
        self._display.step(result)
        if result.skipped and result.loss_scale is not None:
            self._display.say(
                f"step {result.step} skipped: its gradient overflows at loss scale {result.loss_scale:g}"
            )
        elif result.skipped:
            summary = result.summary
            self._display.say(
                f"step {result.step} skipped: loss {summary.loss:g}, gradient norm {summary.grad_norm:g}"
            )

    def validation(self, step: int, result: Validation) -> None:
        """Show a validation's loss and metrics."""
        metrics = "".join(f"  {name.replace('_', ' ')} {value:.4g}" for name, value in result.metrics.items())
        self._display.say(f"step {step}  validation loss {result.loss:.4f}{metrics}")

    def message(self, text: str) -> None:
        """Show a text."""
        self._display.say(text)

    def end(self) -> None:
        """End the display."""
        self._display.close()


class Resumable(RunObserver):
    """Refuses, after the first step, a state that no checkpoint could hold: not when training is done.

    Args:
        run: The run.
    """

    def __init__(self, run: Run) -> None:
        self._run: Run | None = run

    def step(self, result: StepResult) -> None:
        """Look once, after the first step.

        Raises:
            UserError: On every rank alike: the state of the optimizer cannot be saved.
        """
        if self._run is None or result.skipped:
            return
        run, self._run = self._run, None
        check_resumable(run.layers, run.optimizer, run.replication.state(), run.world)


class Closing(RunObserver):
    """Leaves the run's folder to other runs when this one ends.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    def end(self) -> None:
        """Close the folder."""
        self._folder.close()

    def failure(self, error: BaseException) -> None:
        """Close the folder."""
        self._folder.close()


class FirstStep(RunObserver):
    """Reports what only a step shows: buffers that forwards change, and the size of the optimizer's state.

    Args:
        run: The run.
        display: Shows notes.
    """

    def __init__(self, run: Run, display: Display) -> None:
        self._run = run
        self._display = display
        self._done = False

    def step(self, result: StepResult) -> None:
        """Look once, after the first step."""
        if self._done:
            return
        run, self._done = self._run, True
        for name in changing_buffers(run):
            if run.plan.layout.replicas > 1:
                self._display.say(
                    f"note: the buffer {name} changes in forwards: each replica has its own, which follows "
                    "its own samples, and checkpoints have that of the first"
                )
        trained = [p for layer in run.layers for p in layer.module.parameters() if p.requires_grad]
        own = sum(parameter.nbytes for parameter in trained if run.replication.owns(parameter))
        sizes = state_bytes(run.optimizer), own, sum(parameter.nbytes for parameter in trained)
        words = "optimizer state: %s bytes, for %s of %s bytes of parameters that train"
        _log.info(words, *(f"{size:,}" for size in sizes))
