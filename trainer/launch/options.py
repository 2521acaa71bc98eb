"""The launcher's own options; every other word of the command line is the trainer's."""

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from trainer.errors import UserError

GRACE = 120.0  # seconds; a checkpoint of a big model takes a minute

_EXAMPLES = """\
examples:
  python -m trainer.launch -np 4 layout.stages=2
  python -m trainer.launch -H h1:4,h2:4 run.dir=runs/a layout.stages=4
  python -m trainer.launch --requeue run.dir=runs/$SLURM_JOB_ID      (in a batch script)
  python -m trainer.launch -H h1:4,h2:4 --check
"""


@dataclass(frozen=True)
class Options:
    """What the user asks of the launcher.

    Attributes:
        ranks: The number of ranks; None: as many as the place offers.
        hosts: Hosts with slots, such as "h1:2,h2:2"; None: look where this is.
        hostfile: A file of hosts.
        dry_run: Whether to print the command instead of running it.
        check: Whether to measure the links between the hosts instead of training.
        requeue: Whether a run that stopped early goes on by itself.
        grace: Seconds from a request to stop until the ranks are killed.
        mpirun_args: Further options of mpirun.
        module: The module that the ranks run.
        words: What that module is given.
    """

    ranks: int | None = None
    hosts: str | None = None
    hostfile: str | None = None
    dry_run: bool = False
    check: bool = False
    requeue: bool = False
    grace: float = GRACE
    mpirun_args: tuple[str, ...] = ()
    module: str = "trainer"
    words: tuple[str, ...] = ()


class _Parser(argparse.ArgumentParser):
    """Reports what is wrong as everything else is reported."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; python -m trainer.launch --help lists the options")


def parse(words: Sequence[str]) -> Options:
    """Return what a command line asks for.

    Raises:
        UserError: An option is wrong.
    """
    given, rest = _parser().parse_known_args(list(words))
    if given.np is not None and given.np < 1:
        raise UserError(f"-np {given.np} must be at least 1")
    if given.grace < 0:
        raise UserError(f"--grace {given.grace} must be 0 or more seconds")
    if given.hosts is not None and given.hostfile is not None:
        raise UserError("-H and --hostfile both name hosts: give one of them")
    try:
        mpirun_args = tuple(shlex.split(given.mpirun_args))
    except ValueError as error:
        raise UserError(f"--mpirun-args={given.mpirun_args}: {error}") from None
    return Options(
        ranks=given.np,
        hosts=given.hosts,
        hostfile=given.hostfile,
        dry_run=given.dry_run,
        check=given.check,
        requeue=given.requeue,
        grace=given.grace,
        mpirun_args=mpirun_args,
        module=given.module,
        words=tuple(rest),
    )


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m trainer.launch",
        description="Start ranks in Slurm, PBS or LSF, on hosts, or on this machine; see docs/launcher.md.",
        epilog=_EXAMPLES,
        usage="%(prog)s [options] KEY=VALUE ...",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("-np", "-n", type=int, metavar="N", dest="np", help="ranks (default: all slots)")
    parser.add_argument("-H", "--hosts", metavar="h1:2,h2:2", help="hosts and their slots")
    parser.add_argument("--hostfile", metavar="FILE", help="a line for each host, such as `h1 slots=2`")
    parser.add_argument("--dry-run", action="store_true", help="print the command, and start nothing")
    parser.add_argument("--check", action="store_true", help="measure the links between the hosts")
    parser.add_argument("--requeue", action="store_true", help="let a run that stopped early go on by itself")
    parser.add_argument(
        "--grace",
        type=float,
        default=GRACE,
        metavar="S",
        help="seconds to save after a request to stop (default: %(default)g)",
    )
    parser.add_argument("--mpirun-args", default="", metavar="...", help="further options of mpirun")
    parser.add_argument("--module", default="trainer", help="what the ranks run (default: %(default)s)")
    return parser
