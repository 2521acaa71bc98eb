"""A bed of hosts, and a Slurm on another, for all tests of a process; and the text that is trained on."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import prepare
from tests.cluster.hosts import Hosts, hosts
from tests.cluster.slurm import Slurm, slurm

HOSTS = 4


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder, and skip them all where the machine cannot have a bed."""
    here = Path(__file__).parent
    mine = [item for item in items if here in item.path.parents]
    reason = prepare.why_not() if mine else ""
    for item in mine:
        item.add_marker(pytest.mark.cluster)
        if reason:
            item.add_marker(pytest.mark.skip(reason=f"no bed on this machine: {reason}"))


@pytest.fixture(scope="session")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """Return hosts h0 to h3."""
    with hosts(HOSTS, tmp_path_factory.mktemp("bed")) as started:
        yield started


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """Return Slurm over hosts of its own, which no test switches off: h1 to h3 are its nodes."""
    with hosts(HOSTS, tmp_path_factory.mktemp("slurm")) as nodes, slurm(nodes) as started:
        yield started


@pytest.fixture(scope="session")
def small(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the overrides for a GPT that trains in seconds, on a text that is tokenised once."""
    return [
        "experiment=small",
        f"data.path={text_file}",
        f"data.cache={tmp_path_factory.mktemp('cache')}",
        "run.dir=run",
        "threads=1",
        "device=cpu",
        "train.steps=3",
        "eval.every=0",
        "generate.tokens=0",
    ]
