"""Starts ranks as a user does, under a hard time limit, and kills whatever outlives the launch.

Every process of a launch carries the launch's number in its environment, whatever session or process group
the launcher moved it to. So all of them can be found and killed, even orphans. If the tests themselves are
killed, the kernel kills the launcher, and Open MPI's exit ends the ranks.
"""

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from uuid import uuid4

REPOSITORY = Path(__file__).parents[2]
LIMIT = 120.0  # seconds; a launch takes a few, but tests may share the machine
_GRACE = 10.0  # seconds within which ranks must exit after the launcher
_MARK = "TRAINER_TEST_LAUNCH"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_C_LIBRARY = ctypes.CDLL(None)  # loaded early, as a forked child must not load anything
_TAG = re.compile(r"^\[(?:\d+,)?(\d+)\](?:<(?:stdout|stderr)>:| )", re.MULTILINE)  # Open MPI's; MPICH's


@dataclass(frozen=True)
class Result:
    """The outcome of a launch.

    Attributes:
        code: The exit code of the launcher, or of the one process.
        out: Its standard output, without the launcher's tags.
        err: Its standard error, likewise.
        seconds: How long it ran.
        left_over: The commands of ranks that outlived the launcher and had to be killed.
        speakers: The ranks that wrote to standard output.
    """

    code: int
    out: str
    err: str
    seconds: float
    left_over: tuple[str, ...]
    speakers: frozenset[int]

    @property
    def messages(self) -> list[str]:
        """Return the lines in which the trainer reports an error."""
        return [line for line in self.err.splitlines() if line.startswith("trainer: error: ")]

    def check(self) -> "Result":
        """Assert that the launch succeeded, and return this result."""
        assert self.code == 0, f"exit code {self.code}\n{self.out}\n{self.err}"
        assert not self.left_over
        return self


class Launch:
    """Running ranks.

    Args:
        command: What to run.
        folder: The working directory; the command's output is kept there too.
        env: Variables in addition to this process's.
    """

    def __init__(self, command: Sequence[str], folder: Path, env: Mapping[str, str] | None = None) -> None:
        self._number = uuid4().hex
        self._streams = [folder / f"{name}-{self._number}.txt" for name in ("out", "err")]
        self._began = time.monotonic()
        with self._streams[0].open("wb") as out, self._streams[1].open("wb") as err:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env=_environment() | {_MARK: self._number} | dict(env or {}),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
                preexec_fn=die_with_the_parent,  # noqa: PLW1509  (only a system call)
            )

    @property
    def seconds(self) -> float:
        """Return how long ago the launch began."""
        return time.monotonic() - self._began

    def rank(self, rank: int) -> int:
        """Return a rank's process id."""
        names = ("OMPI_COMM_WORLD_RANK", "PMI_RANK")  # Open MPI's, MPICH's
        (found,) = {
            process for name in names for process in _processes({_MARK: self._number, name: str(rank)})
        }
        return found

    def wait_for(self, text: str, limit: float = LIMIT) -> None:
        """Wait until the text appears on standard output."""
        if not _within(limit, lambda: text in self._read(0) or self._process.poll() is not None):
            self.kill()
            raise AssertionError(f"no {text!r} within {limit} s:\n{self._read(0)}\n{self._read(1)}")
        assert text in self._read(0), f"ended without {text!r}:\n{self._read(0)}\n{self._read(1)}"

    def wait_for_file(self, path: Path, limit: float = LIMIT) -> None:
        """Wait until a file exists."""
        if not _within(limit, lambda: path.exists() or self._process.poll() is not None):
            self.kill()
        assert path.exists(), f"no {path}:\n{self._read(0)}\n{self._read(1)}"

    def signal_rank(self, rank: int, number: signal.Signals) -> None:
        """Send a signal to one rank."""
        os.kill(self.rank(rank), number)

    def signal_group(self, number: signal.Signals) -> None:
        """Send a signal to the launcher's process group, as a terminal does."""
        os.killpg(self._process.pid, number)

    def signal_launcher(self, number: signal.Signals) -> None:
        """Send a signal to the launcher's process alone, as `kill` or a batch system may."""
        os.kill(self._process.pid, number)

    def wait(self, limit: float = LIMIT) -> Result:
        """Wait for the launch to end, and return its outcome.

        Raises:
            AssertionError: It did not end within `limit` seconds and was killed.
        """
        try:
            code = self._process.wait(max(0.0, limit - self.seconds))
        except BaseException as error:
            self.kill()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            message = f"still running after {limit} s:\n{self._read(0)}\n{self._read(1)}"
            raise AssertionError(message) from None
        seconds = self.seconds
        _within(_GRACE, lambda: not self._running())
        left_over = tuple(_command(process) for process in self._running())
        self.kill()
        out, err = self._read(0), self._read(1)
        speakers = frozenset(int(rank) for rank in _TAG.findall(out))
        return Result(code, _TAG.sub("", out), _TAG.sub("", err), seconds, left_over, speakers)

    def kill(self) -> None:
        """Kill every process of the launch."""
        while running := self._running():
            for process in running:
                try:
                    os.kill(process, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.05)
        self._process.wait()

    def end_of_launcher(self, limit: float = _GRACE) -> int:
        """Return the launcher's exit code, as a shell would report it; kill the rest of the launch."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(limit)
        self.kill()
        code = self._process.returncode
        return code if code >= 0 else 128 - code

    def output(self) -> str:
        """Return the output so far."""
        return f"{self._read(0)}\n{self._read(1)}"

    def _running(self) -> list[int]:
        return _processes({_MARK: self._number})

    def _read(self, stream: int) -> str:
        return self._streams[stream].read_text(errors="replace")


def die_with_the_parent() -> None:
    """Have the kernel kill this process when its parent ends, also after `exec`."""
    _C_LIBRARY.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def horovodrun(
    ranks: int, overrides: Sequence[str], *, module: str = "trainer", options: Sequence[str] = ()
) -> list[str]:
    """Return the command with which users start ranks, with tags that say which one writes."""
    program = [sys.executable, "-m", module, *overrides]
    return ["horovodrun", f"--mpi-args={_tag_option()}", *options, "-np", str(ranks), *program]


@cache
def is_mpich() -> bool:
    """Return whether this environment's mpirun is MPICH's."""
    asked = subprocess.run(
        ["mpirun", "--version"], env=_environment(), capture_output=True, text=True, check=True
    )
    return "HYDRA" in asked.stdout


def code_of_killed() -> int:
    """Return the exit code of a launch of which a rank was killed; MPICH's is the signal's number alone."""
    return signal.SIGKILL if is_mpich() else 128 + signal.SIGKILL


def _tag_option() -> str:
    """Return the option with which this environment's mpirun tags lines."""
    return "-l" if is_mpich() else "--tag-output"


def alone(overrides: Sequence[str], module: str = "trainer") -> list[str]:
    """Return the command with which users start one process."""
    return [sys.executable, "-m", module, *overrides]


def launch(
    ranks: int,
    overrides: Sequence[str],
    folder: Path,
    *,
    module: str = "trainer",
    env: Mapping[str, str] | None = None,
    limit: float = LIMIT,
) -> Result:
    """Run a module on some ranks in a folder, and wait for it; one rank needs no launcher."""
    command = alone(overrides, module) if ranks == 1 else horovodrun(ranks, overrides, module=module)
    return run(command, folder, env=env, limit=limit)


def run(
    command: Sequence[str], folder: Path, *, env: Mapping[str, str] | None = None, limit: float = LIMIT
) -> Result:
    """Run a command that starts ranks in a folder, and wait for it."""
    return Launch(command, folder, env).wait(limit)


def _environment() -> dict[str, str]:
    """Return a launch's environment: this process's, without an outer launcher's variables."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("OMPI_", "PMIX_"))}
    kept["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
    kept["PYTHONPATH"] = str(REPOSITORY)
    if os.geteuid() == 0:
        kept |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return kept


def _processes(variables: Mapping[str, str]) -> list[int]:
    """Return the ids of processes with these environment variables."""
    wanted = {f"{key}={value}".encode() for key, value in variables.items()}
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
        except OSError:  # it has ended, or belongs to another user
            continue
        if wanted <= set(environment):
            found.append(int(entry.name))
    return found


def _command(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return f"process {process}"


def _within(limit: float, happened: Callable[[], bool]) -> bool:
    """Return whether something happens within `limit` seconds."""
    end = time.monotonic() + limit
    while not happened():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True
