"""What ranks that share cores ask of the kernel and of MPI; each in a process of its own."""

import subprocess
import sys


def printed(program: str) -> str:
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return result.stdout.strip()


def test_longer_turns() -> None:
    program = (
        "import os\n"
        "from trainer.distributed.oversubscription import request_long_time_slices\n"
        "request_long_time_slices()\n"
        "print(os.sched_getscheduler(0) & 0xFF == os.SCHED_BATCH)"
    )
    assert printed(program) == "True"


def test_no_naps_without_open_mpi() -> None:
    code = "from trainer.distributed import oversubscription as o; print(o.sleep_in_background_threads())"
    assert printed(code) == "False"
