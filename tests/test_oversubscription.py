"""Requests to the kernel and to MPI by ranks that share cores; each test runs in its own process."""

import subprocess
import sys


def printed(program: str) -> str:
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return result.stdout.strip()


def test_longer_time_slices() -> None:
    program = (
        "import os\n"
        "from trainer.distributed.oversubscription import request_long_time_slices\n"
        "request_long_time_slices()\n"
        "print(os.sched_getscheduler(0) & 0xFF == os.SCHED_BATCH)"
    )
    assert printed(program) == "True"


def test_no_sleeping_without_open_mpi() -> None:
    code = "from trainer.distributed import oversubscription as o; print(o.sleep_in_background_threads())"
    assert printed(code) == "False"
