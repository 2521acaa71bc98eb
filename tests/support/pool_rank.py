"""`python -m tests.support.pool_rank`: a rank of a pool, which runs one job after another.

[1] a job arrives   over this rank's connection
[2] the command     the same code as `python -m <module>`, except that the process does not exit
[3] the process     is reset
[4] the report      on its own, as a neighbour may wait forever in a receive; the folder may go then
"""

import importlib
import importlib.util
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

from tests.support.fresh import as_if_new
from tests.support.jobs import SOCKET, Hello, Job, Line, Report
from tests.support.launch import die_with_the_parent
from trainer import command
from trainer.distributed import environment
from trainer.distributed.failure import exit_code, message
from trainer.distributed.oversubscription import sleep_in_background_threads
from trainer.errors import TrainingError, UserError

# Once a process: MPI starts once, and its progress loop accepts the callback once.
_KEPT = (command._world, sleep_in_background_threads)


def main() -> None:
    """Run jobs until the pool closes the connection."""
    die_with_the_parent()  # the launcher, whose end a suspended rank would not notice
    rank = environment.rank()
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(f"\0{os.environ.pop(SOCKET)}")
    line = Line(connection)
    line.write(Hello(rank, os.getpid()))
    while (fields := line.read()) is not None:  # [1]
        job = Job(**fields)
        with as_if_new(Path(job.folder), _KEPT), _streams(job, rank):  # [3]
            report = _run(job, rank)  # [2]
        line.write(report)  # [4]


def _run(job: Job, rank: int) -> Report:
    sys.argv[:] = [job.module, *job.arguments]
    try:
        with _mutated(job.mutation):
            module = importlib.import_module(_main_module(job.module))
            with ExitStack() as patched:
                for place in (command, module):  # some import it when they run
                    if hasattr(place, "run_command"):
                        patched.enter_context(mock.patch.object(place, "run_command", command.run_jobs))
                module.main()
    except SystemExit as end:
        return Report(
            end.code if isinstance(end.code, int) else int(end.code is not None), replicas=_joined()
        )
    except BaseException as error:
        text = message(error, rank)
        return Report(exit_code(error), text, isinstance(error, (UserError, TrainingError)), _joined())
    return Report(0, replicas=_joined())


def _main_module(module: str) -> str:
    """Return what `python -m module` runs: the package's `__main__`, or the module itself."""
    spec = importlib.util.find_spec(module)
    is_package = spec is not None and spec.submodule_search_locations is not None
    return f"{module}.__main__" if is_package else module


def _mutated(name: str | None) -> Any:
    if name is None:
        return nullcontext()
    from tests.support.mutations import MUTATIONS  # noqa: PLC0415  (most jobs do not need it)

    return MUTATIONS[name]()


def _joined() -> int:
    """Return the number of replicas that Horovod joins in this process; 0 until it starts."""
    library = sys.modules.get("horovod.torch")
    return library.size() if library is not None and library.is_initialized() else 0


@contextmanager
def _streams(job: Job, rank: int) -> Iterator[None]:
    """Redirect this process's standard output and error to the job's files."""
    with ExitStack() as stack:
        for number, (name, stream) in enumerate((("out", sys.stdout), ("err", sys.stderr)), start=1):
            stream.flush()
            before = os.dup(number)
            stack.callback(os.close, before)
            stack.callback(os.dup2, before, number)
            stack.callback(stream.flush)
            file = os.open(job.stream(name, rank), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(file, number)
            os.close(file)
        yield


if __name__ == "__main__":
    main()
