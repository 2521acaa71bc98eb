"""A job from its start to the point where nothing of it is left on any host, and what follows."""

import os
import tempfile
from pathlib import Path

from trainer.errors import EXIT_SAVED
from trainer.launch import sweep
from trainer.launch.again import MOST_STARTS, Starts, record_of, requeue
from trainer.launch.command_line import MARK, Request, Start
from trainer.launch.options import Options
from trainer.launch.place import others
from trainer.launch.remote import LIMIT, ask
from trainer.launch.supervise import INTERRUPTS, NOTICES, Ended, Supervisor, listen, received
from trainer.launch.words import Means

_PATIENCE = 2.0  # seconds for what is about to end
# Seconds for a host that Open MPI has lost, whose daemon ends the ranks there; and for any, if it names none.
_FOR_LOST = 1.0
_FOR_DOUBTFUL = 4.0
# What srun says of a job that ends: Slurm itself then ends what is left of it.
_ENDED = ("expired", "already completing", "Invalid job id", "confirm allocation")
_SWEEP = Path(str(sweep.__file__))


def say(text: str) -> None:
    """Print a line at once, from any thread."""
    try:
        os.write(2, f"trainer.launch: {text}\n".encode(errors="replace"))
    except OSError:  # nobody reads it
        return


class Job:
    """What the command line asks for, started once or several times.

    Args:
        start: What to run.
        request: What it starts where.
        job: The number of the Slurm job, if this is one.
        options: The user's.
        run_dir: The run's folder, if the user gives it.
    """

    def __init__(
        self, start: Start, request: Request, job: str, options: Options, run_dir: Path | None
    ) -> None:
        self._start = start
        self._mark = request.job
        self._reach = request.reach
        self._others = others([host.name for host in request.hosts])
        self._job = job
        self._options = options
        self._run_dir = run_dir
        self._hidden: Path | None = None

    def run(self) -> int:
        """Run it to its end, and return the exit code."""
        starts = self._starts()
        signals = listen()
        while True:
            supervisor = Supervisor(
                self._start.command,
                self._start.variables,
                signals,
                mark=self._mark,
                grace=self._options.grace,
                say=say,
                hide=self._hide,
                elsewhere=self._runs_elsewhere,
            )
            ended = supervisor.run()
            self._clean_up(ended)
            if any(word.text for word in ended.words) and self._hidden is not None:
                say(f"Open MPI's own words are in {self._hidden}")
            if ended.code != EXIT_SAVED or starts is None:
                return ended.code
            stopped = ended.asked or set(received(signals)).intersection((*NOTICES, *INTERRUPTS))
            if stopped and not self._job:
                return ended.code  # by the user, who would be surprised
            if not starts.may_start_again():
                say(f"started {MOST_STARTS} times without a step: given up")
                return ended.code
            if self._job:
                say(requeue(self._job))
                return ended.code
            say("started again")

    def _starts(self) -> Starts | None:
        """Return the count of starts, if there may be several."""
        if not self._options.requeue or self._run_dir is None:
            return None
        return Starts(self._run_dir, record_of(self._run_dir, self._job) if self._job else None)

    def _clean_up(self, ended: Ended) -> None:
        """End what the job has left, on all hosts."""
        left = {"this host": sweep.sweep(self._mark, _PATIENCE)}
        given = {"mark": self._mark, "patience": _PATIENCE, "kill": True}
        lost = {word.host for word in ended.words if word.means is Means.HOST}
        known = [host for host in self._others if host in lost]
        rest = [host for host in self._others if host not in lost]
        answers = ask(known, self._reach, _SWEEP, given, _FOR_LOST)
        answers += ask(rest, self._reach, _SWEEP, given, _FOR_DOUBTFUL if "" in lost else LIMIT)
        for answer in answers:
            if answer.value is not None:
                left[answer.host] = answer.value["left"]
            elif not any(word in answer.complaint for word in _ENDED):
                say(
                    f"host {answer.host} could not be cleaned up: {answer.complaint}; what is left there has "
                    f"{MARK}={self._mark} in its environment"
                )
        for host, commands in left.items():
            if commands:
                say(f"killed {len(commands)} processes left on {host}, such as: {commands[0]}")

    def _runs_elsewhere(self) -> bool:
        """Return whether another host that answers has processes of the job."""
        given = {"mark": self._mark, "patience": 0.0, "kill": False}
        answers = ask(self._others, self._reach, _SWEEP, given) if self._others else []
        return any("trainer" in text for answer in answers if answer.value for text in answer.value["left"])

    def _hide(self, text: bytes) -> None:
        """Keep Open MPI's own words in a file."""
        try:
            if self._hidden is None:
                folder = self._run_dir / "logs" if self._run_dir is not None else Path(tempfile.gettempdir())
                if not folder.is_dir():
                    folder = Path(tempfile.gettempdir())
                self._hidden = folder / f"mpirun-{self._mark[:8]}.log"
            with self._hidden.open("ab") as file:
                file.write(text)
        except OSError:  # a full disk; ours stand for them
            self._hidden = None
