"""The command that `make setup` and `make wheels` run."""

import argparse
import fcntl
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from launch.install import horovod_build, stamp, steps, wheels
from launch.install.settings import Choices, InputError, SetupError, resolve

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv"


def main(arguments: Sequence[str]) -> int:
    """Run `setup` or `wheels`; return the exit code: 0, 1 (failed) or 2 (wrong input)."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "wheels":
            _wheels(options)
        else:
            with _one_at_a_time():
                _setup(options)
    except SetupError as error:
        print(f"\nmake {options.command}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"\nmake {options.command}: interrupted; run it again to continue.", file=sys.stderr)
        return 130
    return 0


def _setup(options: argparse.Namespace) -> None:
    recorded = stamp.read(VENV)
    given = {name: getattr(options, name) for name in Choices().as_dict()}
    choices = resolve(given, recorded.choices, ROOT)
    reason = stamp.why_stale(recorded, ROOT, VENV, choices)
    if not reason:
        return
    start = time.monotonic()
    chosen = ", ".join(f"{name.upper()}={value}" for name, value in choices.as_dict().items() if value)
    print(f"setting up .venv ({reason}): {chosen}", flush=True)
    jobs = _jobs(options.jobs)
    base = steps.base_python(VENV, recorded.base_python)
    steps.set_up(steps.Plan(root=ROOT, venv=VENV, choices=choices, base_python=base, jobs=jobs))
    print(f"set-up done in {time.monotonic() - start:.0f} s", flush=True)


def _wheels(options: argparse.Namespace) -> None:
    choices = resolve({"torch": options.torch or "system"}, {}, ROOT)
    folder = (Path.cwd() / Path(options.wheels or "wheels").expanduser()).resolve()
    wheels.fill(ROOT, folder, choices.torch, options.python_version)


def _jobs(given: str) -> int:
    if not given:
        return horovod_build.default_jobs()
    if not given.isdigit() or int(given) < 1:
        raise InputError(f"JOBS={given}: expected the number of compilers to run, 1 or more.")
    return int(given)


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Make a second set-up of the same clone wait for the first, whose stamp then leaves nothing to do."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for another set-up of this clone to finish", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            pass  # The file system has no locks: the user must not run two set-ups at once.
        yield


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 -m launch.install", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("setup", "wheels"):
        command = commands.add_parser(name)
        command.add_argument("--torch", default="")
        command.add_argument("--wheels", default="")
        if name == "setup":
            command.add_argument("--mpi", default="")
            command.add_argument("--gpu", default="")
            command.add_argument("--jobs", default="")
        else:
            command.add_argument("--python-version", default="")
    return parser
