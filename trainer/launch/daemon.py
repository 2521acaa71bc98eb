"""Starts Open MPI's daemon so that SIGTERM does not end it: `python daemon.py orted ARGUMENTS...`.

Slurm sends SIGTERM to all processes of a job at once. The daemon would end its ranks two seconds later, so it
gets the signal blocked; it unblocks it for the ranks that it starts. Run as a file, by its path: it imports
the standard library alone.
"""

import os
import signal
import sys


def main() -> None:
    """Replace this process by the daemon."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGHUP})
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
