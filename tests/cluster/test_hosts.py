"""horovodrun over ssh, with nothing but `-H`: it trains on several hosts as on one, to the bit."""

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.cluster.hosts import Hosts
from tests.support.runs import Finished

LIMIT = 120.0  # seconds; on an idle machine it takes ten
SAVED = ["checkpoint.every=3", "checkpoint.keep=0"]

# Trains a number of stages with horovodrun's options from a host.
Run = Callable[[str, int, str], Finished]


@pytest.fixture(scope="module")
def run(bed: Hosts, small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a function that trains with horovodrun, once for the same arguments."""

    @cache
    def train(launcher: str, stages: int, hosts: str) -> Finished:
        folder = tmp_path_factory.mktemp("run")
        ranks = sum(int(host.partition(":")[2]) for host in hosts.split(","))
        overrides = [*small, *SAVED, f"layout.stages={stages}"]
        command = ["horovodrun", "-np", str(ranks), "-H", hosts, sys.executable, "-m", "trainer", *overrides]
        result = bed[launcher].launch(command, folder).wait(LIMIT).check()
        assert bed.left() == {}
        return Finished(result, folder / "run")

    return train


@pytest.mark.parametrize(
    ("launcher", "stages", "hosts", "one_host"),
    [
        pytest.param("h0", 2, "h1:1,h2:1", "h1:1", id="2 hosts, launcher outside"),
        pytest.param("h2", 3, "h1:1,h2:1,h3:1", "h1:1", id="3 hosts, launcher on a worker"),
        pytest.param("h1", 2, "h1:2,h2:2", "h1:2", id="2 hosts with a replica each, launcher on a worker"),
    ],
)
def test_bits_of_one_host(launcher: str, stages: int, hosts: str, one_host: str, run: Run) -> None:
    spread = run(launcher, stages, hosts)
    alone = run("h1", 1, one_host)
    assert "silent for 7 s" in spread.result.err
    assert alone.result.err == ""
    assert spread.losses == alone.losses
    assert spread.grad_norms == alone.grad_norms
    assert spread.layer_files(3) == alone.layer_files(3)


def test_a_host_without_ssh_is_named(bed: Hosts, tmp_path: Path) -> None:
    bed["h3"].power_off()
    try:
        command = ["horovodrun", "-np", "2", "-H", "h1:1,h3:1", "hostname"]
        result = bed["h0"].launch(command, tmp_path).wait(LIMIT)
        assert result.code != 0
        assert "ssh not successful for host h3" in result.out
    finally:
        bed["h3"].start()
