"""The bed itself: hosts are apart, links break, and nothing stays."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster import memory
from tests.cluster.hosts import Hosts, hosts, within
from tests.cluster.slurm import Slurm
from tests.support.launch import REPOSITORY


def test_a_host_has_its_own_name_processes_and_memory(bed: Hosts) -> None:
    assert [host.run("hostname").strip() for host in bed.values()] == list(bed)
    bed["h1"].run("touch", "/dev/shm/mine")
    assert bed["h1"].left(0) == ["/dev/shm/mine"]
    assert bed["h2"].left(0) == []
    bed["h1"].run("rm", "/dev/shm/mine")
    assert "sshd" in bed["h1"].run("ps", "-p", "1", "-o", "comm=")


def test_ssh_between_hosts_by_name(bed: Hosts) -> None:
    assert bed["h0"].run("ssh", "h1", "hostname; ssh h2 hostname").split() == ["h1", "h2"]


def test_two_beds_do_not_meet(bed: Hosts, tmp_path: Path) -> None:
    with hosts(2, tmp_path) as other:
        other["h0"].run("touch", "/dev/shm/other")
        assert bed["h0"].run("ls", "/dev/shm") == ""
        bed["h1"].cut()
        assert other["h0"].run("ssh", "h1", "hostname").strip() == "h1"
        bed["h1"].mend()


def test_a_link_vanishes_and_returns(bed: Hosts) -> None:
    def carrier() -> str:
        return bed["h1"].run("cat", "/sys/class/net/eth0/carrier").strip()

    try:
        bed["h1"].vanish()
        assert carrier() == "1"
        assert not _reaches(bed, "h1")
        bed["h1"].cut()
        assert carrier() == "0"
    finally:
        bed["h1"].mend()
    assert within(10.0, lambda: _reaches(bed, "h1"))


def _reaches(bed: Hosts, name: str) -> bool:
    """Return whether h0 reaches a host within a second."""
    knock = f"timeout 1 bash -c 'echo > /dev/tcp/{name}/22' && echo yes"
    return "yes" in bed["h0"].run("sh", "-c", knock, check=False)


def test_a_process_left_over_is_seen(bed: Hosts) -> None:
    bed["h2"].run("sh", "-c", "sleep 300 >&- 2>&- &")
    assert bed.left(0) == {"h2": ["sleep 300"]}
    (process,) = bed["h2"].processes("sleep 300")
    os.kill(process, signal.SIGSTOP)
    assert Path(f"/proc/{process}/stat").read_text().split()[2] == "T"
    os.kill(process, signal.SIGKILL)
    assert bed.left() == {}


def test_a_full_disk_on_one_host(bed: Hosts, tmp_path: Path) -> None:
    bed["h1"].private(tmp_path, 1 << 20)
    try:
        fill = ["dd", "if=/dev/zero", f"of={tmp_path}/file", "bs=1M", "count=2"]
        with pytest.raises(AssertionError, match="No space left"):
            bed["h1"].run(*fill)
        bed["h2"].run(*fill)
        assert (tmp_path / "file").stat().st_size == 2 << 20
    finally:
        bed["h1"].share(tmp_path)


def test_a_host_that_was_off_comes_back(bed: Hosts) -> None:
    bed["h3"].run("sh", "-c", "sleep 300 >&- 2>&- &")
    bed["h3"].power_off()
    assert bed["h3"].processes() == {}
    bed["h3"].start()
    assert bed["h0"].run("ssh", "h3", "hostname").strip() == "h3"


@pytest.mark.skipif(memory.controller() is None, reason="no memory controller for tests on this machine")
def test_memory_is_limited(bed: Hosts) -> None:
    with memory.limited(64 << 20) as group:
        command = bed["h1"].command([sys.executable, "-c", "bytearray(256 << 20)"])
        assert subprocess.run(group.command(command), check=False).returncode == -signal.SIGKILL
        assert group.kills() == 1


def test_slurm_runs_a_job_on_two_nodes(cluster: Slurm, tmp_path: Path) -> None:
    job = cluster.submit("srun hostname | sort", tmp_path, "--nodes=2", "--ntasks-per-node=1")
    assert job.wait(30) == 0
    assert job.output().split() == ["h1", "h2"]
    assert cluster.hosts.left() == {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_outlives_whoever_opened_a_bed(number: signal.Signals, tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from tests.cluster.hosts import hosts\n"
        "from tests.cluster.slurm import slurm\n"
        "with hosts(2, Path(sys.argv[1])) as bed, slurm(bed):\n"
        "    print('open', flush=True); time.sleep(300)"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        assert _using(tmp_path)
        process.send_signal(number)
    assert within(5.0, lambda: not _using(tmp_path)), _using(tmp_path)


def _using(folder: Path) -> list[str]:
    """Return the commands that name a folder, or run in a mount of it."""
    lines = [path.read_bytes().decode() for path in Path("/proc").glob("[0-9]*/cmdline") if _readable(path)]
    return [line for line in lines if str(folder) in line]


def _readable(path: Path) -> bool:
    try:
        return bool(path.read_bytes())
    except OSError:
        return False
