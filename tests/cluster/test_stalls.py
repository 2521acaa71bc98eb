"""Ranks on several hosts name the one that stands still, and end by themselves when nobody else ends them."""

import signal
import sys
import time
from pathlib import Path

from tests.cluster.hosts import Hosts
from tests.support.launch import Launch

SOON = 30.0  # seconds, on a machine that others use too
KEEPALIVE = {
    "OMPI_MCA_oob_tcp_keepalive_time": "4",
    "OMPI_MCA_oob_tcp_keepalive_intvl": "2",
    "OMPI_MCA_oob_tcp_keepalive_probes": "3",
}


def training(bed: Hosts, small: list[str], folder: Path) -> Launch:
    """Return a run of a rank on each of h1 and h2, which has begun; its launcher is on h0."""
    options = ["train.steps=100000", "progress=line", "layout.stages=2", "train.stall_seconds=5"]
    command = ["horovodrun", "-np", "2", "-H", "h1:1,h2:1", sys.executable, "-m", "trainer"]
    launched = bed["h0"].launch([*command, *small, *options], folder, KEEPALIVE)
    launched.wait_for("step 1/100000")
    return launched


def test_a_stopped_rank_that_is_alone_on_its_host(bed: Hosts, small: list[str], tmp_path: Path) -> None:
    launched = training(bed, small, tmp_path)
    launched.signal_rank(1, signal.SIGSTOP)
    result = launched.wait(SOON + launched.seconds)
    assert result.code == 1
    assert "rank 1 (stage 1, replica 0, host h2) does not answer, though its host does" in result.err
    assert "rank 0 (stage 0, replica 0, host h1) waits for " in result.err
    assert bed.left() == {}


def test_workers_end_when_their_launcher_is_out_of_reach(
    bed: Hosts, small: list[str], tmp_path: Path
) -> None:
    """Open MPI's daemons end some ranks; the others end by themselves, and their daemon after them."""
    launched = training(bed, small, tmp_path)
    began = time.monotonic()
    bed["h0"].vanish()
    try:
        assert bed["h1"].left(SOON) == bed["h2"].left(SOON) == []
        assert time.monotonic() - began < SOON
    finally:
        launched.kill()
        bed["h0"].mend()
