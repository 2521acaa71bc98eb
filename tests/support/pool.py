"""Ranks that start once and take many jobs, because starting them takes longer than most jobs.

Between jobs the ranks are suspended, so that they use no CPU time. A pool is discarded when a job may have
left traces: a rank died, hangs, or raised anything but a `UserError`. Its processes are then killed, and the
next job starts a new pool.
"""

import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

from tests.support.jobs import SOCKET, Hello, Job, Line, Report
from tests.support.launch import LIMIT, Launch, Result, horovodrun

_START_LIMIT = 90.0  # seconds
_GRACE = 3.0  # seconds within which all ranks must raise an error that one has raised
_MODULE = "tests.support.pool_rank"


class Pool:
    """Running ranks.

    Args:
        ranks: Their number; one rank starts without a launcher.
        folder: An empty folder, for the output of jobs.

    Attributes:
        ranks: Their number.
        usable: Whether it takes another job.
        replicas: The number of replicas that Horovod joins in these processes; 0 until it starts.
        deterministic: Whether Horovod was started for `train.deterministic`.
    """

    def __init__(self, ranks: int, folder: Path) -> None:
        self.ranks = ranks
        self.usable = True
        self.replicas = 0
        self.deterministic = False
        self._folder = folder
        self._jobs = 0
        name = f"trainer-pool-{uuid4().hex}"  # in Linux's abstract namespace: no file, no limit on its length
        command = [sys.executable, "-m", _MODULE] if ranks == 1 else horovodrun(ranks, [], module=_MODULE)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"\0{name}")
            server.listen(ranks)
            self._launch = Launch(command, folder, {SOCKET: name})
            try:
                self._lines, self._processes = self._accept(server)
            except BaseException:
                self._launch.kill()
                raise
        self._signal(signal.SIGSTOP)

    def _accept(self, server: socket.socket) -> tuple[dict[int, Line], dict[int, int]]:
        """Return the connections and the process ids of all ranks."""
        lines: dict[int, Line] = {}
        processes: dict[int, int] = {}
        server.settimeout(_START_LIMIT)
        while len(lines) < self.ranks:
            try:
                connection, _ = server.accept()
            except TimeoutError:
                raise AssertionError(f"the ranks of a pool did not start:\n{self._launch.output()}") from None
            line = Line(connection)
            fields = line.read()
            assert fields is not None, f"a rank of a pool ended at once:\n{self._launch.output()}"
            hello = Hello(**fields)
            lines[hello.rank], processes[hello.rank] = line, hello.process
        return lines, processes

    def process(self, rank: int) -> int:
        """Return a rank's process id."""
        return self._processes[rank]

    def run(
        self,
        arguments: list[str],
        folder: Path,
        *,
        module: str = "trainer",
        mutation: str | None = None,
        deterministic: bool = False,
        limit: float = LIMIT,
    ) -> Result:
        """Run a command on every rank, in a folder; return the outcome as of a separate launch.

        Args:
            arguments: The command's arguments.
            folder: The working directory.
            module: As in `python -m module`.
            mutation: The mistake to put into the trainer for this job.
            deterministic: Whether Horovod must add in a fixed order, if this job starts it.
            limit: Seconds.

        Raises:
            AssertionError: It did not end within `limit` seconds.
        """
        assert self.usable
        began = time.monotonic()
        job = Job(module, arguments, str(folder), str(self._folder / str(self._jobs)), mutation)
        self._jobs += 1
        try:
            reports, dead = self._reports(job, began + limit)
        except BaseException:
            self.end()
            raise
        if self.replicas == 0:
            self.replicas = max([0, *(report.replicas for report in reports.values())])
            self.deterministic = deterministic
        code, errors = self._outcome(reports, dead)
        if self.usable:
            self._signal(signal.SIGSTOP)
        out, err = (self._streams(job, name) for name in ("out", "err"))
        speakers = frozenset(rank for rank, text in out.items() if text)
        err_of_all = "".join([*err.values(), *errors])
        return Result(code, "".join(out.values()), err_of_all, time.monotonic() - began, (), speakers)

    def end(self) -> None:
        """Kill the ranks."""
        self.usable = False
        for line in self._lines.values():
            line.close()
        self._launch.kill()

    def _reports(self, job: Job, until: float) -> tuple[dict[int, Report], int | None]:
        """Return the ranks' reports, and the rank that died without one, if any.

        Reports are missing where a rank died, or raised an error that others did not.
        """
        self._signal(signal.SIGCONT)
        reports: dict[int, Report] = {}
        with selectors.DefaultSelector() as waiting:
            for rank, line in self._lines.items():
                waiting.register(line.connection, selectors.EVENT_READ, rank)
                try:
                    line.write(job)
                except OSError:
                    return reports, rank
            while waiting.get_map():
                ready = waiting.select(max(0.0, until - time.monotonic()))
                for key, _ in ready:
                    waiting.unregister(key.fileobj)
                    fields = self._lines[key.data].read()
                    if fields is None:
                        return reports, key.data
                    report = reports[key.data] = Report(**fields)
                    if report.error is not None and not report.of_input:
                        return reports, None  # the pool ends whatever the others do, which may be to wait
                    if report.error is not None:
                        until = min(until, time.monotonic() + _GRACE)
                if not ready:
                    assert any(report.error is not None for report in reports.values()), self._unfinished(job)
                    break
        return reports, None

    def _outcome(self, reports: Mapping[int, Report], dead: int | None) -> tuple[int, list[str]]:
        """Return a job's exit code, and the error text that the command prints.

        If several ranks fail, the first reports, as it ends the others. A pool whose ranks may differ ends.
        """
        failed = [reports[rank] for rank in sorted(reports) if reports[rank].error is not None]
        if dead is not None:
            code = self._launch.end_of_launcher()
            self.end()
            how = f"was killed by signal {code - 128}" if code > 128 else f"ended with exit code {code}"
            return code, [f"rank {dead} {how}\n"]
        if len(reports) < self.ranks or any(not report.of_input for report in failed):
            self.end()
        if failed:
            return failed[0].code, [str(failed[0].error)]
        return max(report.code for report in reports.values()), []

    def _unfinished(self, job: Job) -> str:
        said = [text for name in ("out", "err") for text in self._streams(job, name).values()]
        return f"a job had not ended in time: {job}\n" + "\n".join(said)

    def _streams(self, job: Job, name: str) -> dict[int, str]:
        """Return the output of each rank."""
        paths = {rank: Path(job.stream(name, rank)) for rank in range(self.ranks)}
        return {rank: path.read_text(errors="replace") for rank, path in paths.items() if path.exists()}

    def _signal(self, number: signal.Signals) -> None:
        for process in self._processes.values():
            os.kill(process, number)
