"""`python -m trainer.launch [-np N] [-H h1:2,h2:2] KEY=VALUE ...`: start ranks wherever this is.

[1] the place      Slurm, PBS, LSF, hosts that are given, or this machine
[2] the layout     as the configuration asks: how many ranks, and which of them belong together
[3] the checks     of every other host, before anything starts
[4] the command    mpirun's, or srun's
[5] the job        supervised; nothing of it is left on any host

It imports neither torch nor MPI.
"""

import os
import shlex
import signal
import sys
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

from trainer.errors import EXIT_SAVED, EXIT_USER_ERROR, UserError
from trainer.launch import network
from trainer.launch.checks import Found, look_at
from trainer.launch.command_line import Request, Start, by_mpirun, by_srun, program
from trainer.launch.groups import crossings, describe, take
from trainer.launch.job import Job, say
from trainer.launch.layout import Asked, read
from trainer.launch.mpi import Kind, Mpi, find_mpi, srun_speaks_pmix
from trainer.launch.options import Options, parse
from trainer.launch.place import Host, Place, Reach, expand_by_slurm, find
from trainer.launch.supervise import NOTICES

_INTERRUPTED = 130
_LINKS = "trainer.launch.links"


def main() -> None:
    """Launch as the command line asks, and exit with the job's code."""
    try:
        _end_at_once_before_ranks_start()
        code = launch(parse(sys.argv[1:]))
    except ProblemsError as error:
        code = _report(*error.lines)
    except UserError as error:
        code = _report(str(error))
    except KeyboardInterrupt:
        say("interrupted before the ranks started")
        code = _INTERRUPTED
    sys.stdout.flush()
    os._exit(code)


class ProblemsError(UserError):
    """Several things that are wrong, a line each."""

    def __init__(self, lines: tuple[str, ...]) -> None:
        super().__init__("; ".join(lines))
        self.lines = lines


def launch(options: Options) -> int:
    """Start what the user asks for, and return its exit code.

    Raises:
        UserError: It cannot start.
    """
    place = find(options.hosts, options.hostfile, os.environ, expand_by_slurm)  # [1]
    asked = Asked() if options.check else read(options.module, options.words)  # [2]
    hosts = _hosts(place, options, asked)
    group = asked.group(sum(host.slots for host in hosts))
    if options.requeue and asked.run_dir is None:
        raise UserError("--requeue needs run.dir=FOLDER: the next start goes on from the checkpoints there")
    mpi = find_mpi()
    found = Found()
    if place.reach is not Reach.LOCAL:
        found = look_at([host.name for host in hosts], place.reach, mpi.mpirun, asked.run_dir)  # [3]
        if found.problems:
            raise ProblemsError(found.problems)
    request = Request(hosts, place.reach, uuid4().hex, place.nodes, found.networks, os.environ)
    start = _start(mpi, request, options)  # [4]
    command = [*start.command, *_program(options, hosts)]
    _describe(place, request, start, found, options)
    if crossing := crossings(hosts, group):
        say(describe(crossing, group, hosts))
    if options.dry_run:
        print(" ".join(f"{name}={shlex.quote(value)}" for name, value in start.variables.items()))
        print(shlex.join(command))
        return 0
    return Job(
        replace(start, command=tuple(command)), request, place.job, options, asked.run_dir
    ).run()  # [5]


def _hosts(place: Place, options: Options, asked: Asked) -> tuple[Host, ...]:
    """Return the hosts with as many slots as ranks, in the order of these."""
    if not place.hosts:
        ranks = options.ranks or (2 if options.check else asked.ranks or 1)
        return (Host("localhost", ranks),)
    if options.check:
        return tuple(Host(host.name, min(2, max(host.slots, host.cores))) for host in place.hosts)
    ranks = options.ranks or sum(host.slots for host in place.hosts)
    return take(place.hosts, ranks, asked.group(ranks), fixed=place.reach is Reach.SRUN)


def _start(mpi: Mpi, request: Request, options: Options) -> Start:
    if request.reach is Reach.SRUN and mpi.kind is Kind.OPEN_MPI and not mpi.knows_slurm():
        if not srun_speaks_pmix():
            raise UserError(
                f"{mpi.mpirun} was built without Slurm, and this Slurm without PMIx (srun --mpi=list): give "
                "-H h1:2,h2:2 with hosts that ssh reaches, or use the cluster's MPI module"
            )
        return by_srun(request)
    return by_mpirun(mpi, request, options.mpirun_args)


def _program(options: Options, hosts: tuple[Host, ...]) -> list[str]:
    if not options.check:
        return program(options.module, options.words)
    slots = ", ".join(f'"{host.name}": {host.slots}' for host in hosts)
    return program(_LINKS, [str(Path(network.FILE).absolute()), f"{{{slots}}}"])


def _describe(place: Place, request: Request, start: Start, found: Found, options: Options) -> None:
    """Say what was found: all of it where the user asks, else what is not plain."""
    listed = ", ".join(f"{host.slots} on {host.name}" for host in request.hosts)
    if options.dry_run or options.check or place.reach is not Reach.LOCAL:
        say(f"{place.found}: {request.ranks} ranks, {listed}; {start.how}")
    elif options.ranks is None and not place.hosts:
        one = "1 rank on this machine; -np N starts more"
        several = f"{request.ranks} ranks on this machine, for one replica; -np N starts more"
        say(one if request.ranks == 1 else several)
    if (options.dry_run or options.check) and found.addresses:
        say("networks " + ("; ".join(f"{host}: {where or 'none shared'}" for host, where in found.addresses)))


def _report(*lines: str) -> int:
    for line in lines:
        say(f"error: {line}")
    return EXIT_USER_ERROR


def _end_at_once_before_ranks_start() -> None:
    """Let a signal end this process with one line while it looks around, as there is nothing to save."""

    def end(number: int, _frame: object) -> None:
        say(f"{signal.Signals(number).name} before the ranks started: nothing is lost, run again")
        os._exit(EXIT_SAVED)

    for number in NOTICES:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, end)


if __name__ == "__main__":
    main()
