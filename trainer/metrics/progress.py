"""Progress of a run, shown by rank 0: a bar on a terminal, lines elsewhere."""

import sys
import time
from typing import Protocol

from tqdm import tqdm

from trainer.distributed import environment
from trainer.step import StepResult

# Seconds between two lines: short at first, while somebody watches, and longer as the run goes on.
_SOONEST_LINE = 1.0
_LATEST_LINE = 30.0
_SHARE_OF_RUN = 0.02

_PAUSE = 0.002  # seconds between the lines of a text


class Display(Protocol):
    """Shows the progress of a run."""

    def step(self, result: StepResult) -> None:
        """Show a step."""

    def say(self, text: str) -> None:
        """Show a text of one or more lines."""

    def close(self) -> None:
        """End the display."""


def build_display(mode: str, *, rank: int, start: int, steps: int, samples: int | None = None) -> Display:
    """Return the display of a rank.

    Args:
        mode: "bar", "line", "off", or "auto": a bar on a terminal, unless a launcher passes on
            the output; otherwise lines.
        rank: This rank; only rank 0 shows anything.
        start: The number of steps done before.
        steps: The last step.
        samples: The samples of a step, whose rate is shown; None: that of what the loss counts, tokens.
    """
    if rank != 0 or mode == "off":
        return Off()
    if mode == "auto":
        mode = "bar" if sys.stdout.isatty() and not environment.launched() else "line"
    return (Bar if mode == "bar" else Lines)(start, steps, samples)


class Off:
    """Shows nothing."""

    def step(self, result: StepResult) -> None:
        """Do nothing."""

    def say(self, text: str) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def write_lines(text: str) -> None:
    """Write each line to standard output by itself, with a pause in between.

    A launcher reads output in chunks of a few KiB and tags each. Lines written all at once would be cut where
    a chunk ends.
    """
    for number, line in enumerate(text.split("\n")):
        if number > 0:
            time.sleep(_PAUSE)
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


class Lines:
    """Writes a line for the first and the last step, and occasionally in between."""

    def __init__(self, start: int, steps: int, samples: int | None) -> None:
        self._start, self._steps = start, steps
        self._began = self._last = time.monotonic()
        self._rate = Rate(samples)

    def step(self, result: StepResult) -> None:
        """Write a line for a step, if one is due."""
        self._rate.add(result)
        now = time.monotonic()
        step = result.step
        first_or_last = step in (self._start + 1, self._steps)
        pause = min(max(_SHARE_OF_RUN * (now - self._began), _SOONEST_LINE), _LATEST_LINE)
        if not first_or_last and now - self._last < pause:
            return
        self._last = now
        left = (now - self._began) / (step - self._start) * (self._steps - step)
        self.say(f"step {step}/{self._steps}  {describe(result)}  {self._rate}  {_clock(left)} left")

    def say(self, text: str) -> None:
        """Write a text of one or more lines."""
        write_lines(text)

    def close(self) -> None:
        """Do nothing: every line is complete."""


class Bar:
    """Draws a progress bar."""

    def __init__(self, start: int, steps: int, samples: int | None) -> None:
        self._rate = Rate(samples)
        self._bar = tqdm(initial=start, total=steps, unit="step", dynamic_ncols=True, file=sys.stdout)

    def step(self, result: StepResult) -> None:
        """Advance the bar."""
        self._rate.add(result)
        self._bar.n = result.step
        self._bar.set_postfix_str(f"{describe(result)}  {self._rate}")

    def say(self, text: str) -> None:
        """Write a text above the bar."""
        self._bar.write(text)

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()


class Rate:
    """Samples or tokens per second, averaged over recent steps.

    Args:
        samples: The samples of a step; None for tokens.
    """

    def __init__(self, samples: int | None) -> None:
        self._samples = samples
        self._unit = "tokens" if samples is None else "samples"
        self._value: float | None = None

    def add(self, result: StepResult) -> None:
        """Add a step."""
        count = result.summary.count if self._samples is None else self._samples
        now = count / result.seconds
        self._value = now if self._value is None else 0.8 * self._value + 0.2 * now

    def __str__(self) -> str:
        return f"{'-' if self._value is None else f'{self._value:,.0f}'} {self._unit}/s"


def describe(result: StepResult) -> str:
    """Return a step's metrics in short form."""
    loss, norm = result.summary.loss, result.summary.grad_norm
    return f"loss {loss:.4f}  norm {norm:.3f}  lr {result.lr:.2e}  bubble {result.bubble:.0%}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
