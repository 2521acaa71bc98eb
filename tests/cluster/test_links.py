"""A host that goes silent ends the job within seconds, on all hosts."""

import sys
import time
from pathlib import Path

import pytest

from tests.cluster.hosts import Hosts
from tests.support.launch import Launch

SOON = 10.0  # seconds


@pytest.fixture
def training(bed: Hosts, small: list[str], tmp_path: Path) -> Launch:
    """Return a run of a rank on each of h1 and h2, which has begun; its launcher is on h0."""
    ranks = [sys.executable, "-m", "trainer", *small, "train.steps=100000", "progress=line"]
    command = ["horovodrun", "-np", "2", "-H", "h1:1,h2:1", *ranks]
    launched = bed["h0"].launch(command, tmp_path)
    launched.wait_for("step 1/100000")
    return launched


def test_a_link_that_vanishes(bed: Hosts, training: Launch) -> None:
    began = time.monotonic()
    bed["h2"].vanish()
    try:
        result = training.wait(training.seconds + 3 * SOON)
        assert time.monotonic() - began < SOON
        assert result.code != 0
        assert "h2" in result.err
        assert bed.left(SOON) == {}  # on both sides
    finally:
        bed["h2"].mend()


def test_a_host_without_power(bed: Hosts, training: Launch) -> None:
    began = time.monotonic()
    bed["h2"].power_off()
    try:
        result = training.wait(training.seconds + 3 * SOON)
        assert time.monotonic() - began < SOON
        assert result.code != 0
        assert "h2" in result.err
        assert bed.left(SOON) == {}
    finally:
        bed["h2"].start()


def test_a_host_that_starts_anew(bed: Hosts, training: Launch) -> None:
    """Its kernel closes connections."""
    began = time.monotonic()
    bed["h2"].reset()
    try:
        result = training.wait(training.seconds + 3 * SOON)
        assert time.monotonic() - began < SOON
        assert result.code != 0
        assert bed.left(SOON) == {}
    finally:
        bed["h2"].start()
