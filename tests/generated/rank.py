"""`python -m tests.generated.rank`: runs cases one after another, in ranks that start once; a line for each.

A case ends alike on all ranks, or it is a fault: an error of one rank leaves the others waiting. Then this
process raises, and whoever started it ends all of them.
"""

import copy
import gc
import json
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any
from unittest import mock

from tests.generated.cases import Case, case
from trainer.command import run_command
from trainer.config.optimizers import AdamWConfig, CustomOptimizerConfig, GroupConfig, SGDConfig
from trainer.config.schema import Config
from trainer.errors import TrainingError, UserError, notes

if TYPE_CHECKING:
    from trainer.distributed.world import Communicator, World

LIMIT = 30.0  # seconds that a case may take
_BETWEEN_COLLECTIONS = 10  # cases
_TOGETHER = 4.0  # seconds within which an error of one rank must reach all
_OPTIMIZERS = {"sgd": SGDConfig, "adamw": AdamWConfig, "custom": CustomOptimizerConfig}

EQUAL, DIFFERS, REFUSED, STOPPED, ERROR, PLAIN = (
    "equal",
    "differs",
    "refused",
    "stopped",
    "error",
    "plain fails",
)


@dataclass
class Outcome:
    """How a case ended.

    Attributes:
        seed: Its number.
        verdict: One of the above.
        message: What was refused, or differs.
        seconds: How long it took.
        good: Whether it ended as it should.
    """

    seed: int
    verdict: str
    message: str = ""
    seconds: float = 0.0
    good: bool = False


def main() -> None:
    """Run the cases that `model.options` names."""
    run_command(_run)


def _run(config: Config, world: "World") -> None:
    from trainer.distributed.world import Communicator  # noqa: PLC0415  (after the environment is prepared)

    warnings.simplefilter("ignore")
    asked = config.model.options  # type: ignore[attr-defined]
    everyone = Communicator(world.comm.Dup(), world.meter)
    seeds = asked.get("seeds") or range(asked["first"], asked["first"] + asked["count"])
    for number, seed in enumerate(seeds):
        drawn = case(seed, world.size, asked["replicas"], tuple(asked.get("without", ())))
        _say(world, {"began": seed})
        start = time.perf_counter()
        with _limited(seed):
            outcome = _outcome(drawn, configured(config, drawn), world)
            outcome = _agreed(outcome, everyone)
        outcome.seconds = round(time.perf_counter() - start, 3)
        _say(world, asdict(outcome))
        if asked["replicas"] > 1 and _within_a_step(outcome):
            raise RuntimeError("all-reduces may be pending: the next case needs new processes")
        if number % _BETWEEN_COLLECTIONS == 0:
            gc.collect()


def _within_a_step(outcome: Outcome) -> bool:
    return outcome.verdict in (ERROR, PLAIN) or ": micro-batch" in outcome.message


def configured(base: Config, drawn: Case) -> Config:
    """Return the configuration of a case."""
    from trainer.config.check import check  # noqa: PLC0415

    config = copy.deepcopy(base)
    for key, value in drawn.overrides.items():
        *path, name = key.split(".")
        place: Any = config
        for part in path:
            place = getattr(place, part)
        if key == "optimizer":
            value = _OPTIMIZERS[value]()  # noqa: PLW2901
        if key == "optimizer.groups":
            value = [GroupConfig(**entry) for entry in value]  # noqa: PLW2901
        setattr(place, name, value)
    config.train.deterministic = True
    check(config)
    return config


def _outcome(drawn: Case, config: Config, world: "World") -> Outcome:
    from trainer.run import Run  # noqa: PLC0415
    from trainer.verify import verification  # noqa: PLC0415

    lines: list[str] = []
    try:
        with mock.patch.object(verification, "write_lines", lines.append):
            equal = verification.verify(Run(config, world))
    except UserError as error:
        return _refused(drawn, Outcome(drawn.seed, REFUSED, _message(error)))
    except TrainingError as error:
        return _refused(drawn, Outcome(drawn.seed, STOPPED, _message(error)))
    except TimeoutError:
        raise
    except Exception as error:
        text = "".join(traceback.format_exception(error)) + "\n".join(notes(error))
        if drawn.words and all(word in text for word in drawn.words):
            return Outcome(drawn.seed, ERROR, _message(error), good=True)
        if "/verify/reference" not in text and _plain_fails(drawn, config):
            return Outcome(drawn.seed, PLAIN, _message(error), good=True)
        return Outcome(drawn.seed, ERROR, text)
    failed = [line for text in lines for line in text.splitlines() if line.startswith("FAILED")]
    good = equal and not drawn.words
    return Outcome(drawn.seed, EQUAL if equal else DIFFERS, "\n".join(failed[:8]), good=good or _any(drawn))


def _any(drawn: Case) -> bool:
    return drawn.words == ("anything",)


def _refused(drawn: Case, outcome: Outcome) -> Outcome:
    """Judge a refusal: of a mistake it must name the place."""
    named = bool(drawn.words) and all(word in outcome.message for word in drawn.words)
    allowed = drawn.may_be_refused and "changes its weights in its forward" in outcome.message
    outcome.good = named or allowed or _any(drawn)
    return outcome


def _message(error: BaseException) -> str:
    return "; ".join([f"{type(error).__name__}: {error}", *notes(error)])


def _agreed(outcome: Outcome, everyone: "Communicator") -> Outcome:
    """Return rank 0's outcome, after all ranks have come to theirs.

    Raises:
        RuntimeError: They have not, or not to the same.
    """
    request, until = everyone.comm.Ibarrier(), time.monotonic() + _TOGETHER
    alone = outcome.verdict not in (EQUAL, DIFFERS)
    everyone.wake(*range(everyone.size))
    while not request.Test():
        if alone and time.monotonic() > until:
            raise RuntimeError("ALONE " + json.dumps(asdict(outcome)))
        time.sleep(0.0005)
    outcomes = [Outcome(**each) for each in everyone.all_gather_objects(asdict(outcome))]
    if len({each.verdict for each in outcomes}) > 1:
        worst = next(each for each in outcomes if each.verdict != EQUAL)
        everyone_said = "; ".join(f"{each.verdict}" for each in outcomes)
        return Outcome(outcome.seed, ERROR, f"ranks differ ({everyone_said}): {worst.message}")
    return outcomes[0]


def _plain_fails(drawn: Case, config: Config) -> bool:
    """Return whether the plain loop fails too: then the model is not one that PyTorch trains."""
    from tests.generated.plain import trains  # noqa: PLC0415

    return not trains(config, drawn.replicas)


@contextmanager
def _limited(seed: int) -> Iterator[None]:
    """Raise an error where a case takes too long, with a traceback that shows where it waits."""

    def stop(number: int, frame: object) -> None:
        raise TimeoutError(f"case {seed} took more than {LIMIT} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _say(world: "World", line: dict[str, Any]) -> None:
    if world.rank == 0:
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
