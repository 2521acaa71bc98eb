"""Gradients averaged across replicas: compressed, with Adasum, with three replicas."""

from pathlib import Path

import pytest

from tests.support.pools import Pools
from tests.support.refusals import assert_refused
from tests.support.runs import Trained

pytestmark = pytest.mark.parallel


def test_halves(trained: Trained) -> None:
    whole = trained(2, "layout.stages=1")
    halves = trained(2, "layout.stages=1", "averaging.compression=fp16")
    assert halves.losses == pytest.approx(whole.losses, rel=1e-3)
    assert halves.losses != whole.losses
    assert halves.losses[-1] < halves.losses[0] - 0.1


def test_adasum(trained: Trained) -> None:
    average = trained(2, "layout.stages=1")
    adasum = trained(2, "layout.stages=1", "averaging.op=adasum")
    assert adasum.losses[0] == average.losses[0]
    assert adasum.losses != average.losses
    assert adasum.losses[-1] < adasum.losses[0] - 0.1


def test_adasum_of_three(pools: Pools, small: list[str], tmp_path: Path) -> None:
    """Horovod's Adasum pairs ranks, so their number must be a power of two."""
    result = pools.run(3, [*small, "layout.stages=1", "averaging.op=adasum"], tmp_path)
    assert_refused(result, tmp_path, "averaging.op=adasum", "3 replicas")


def test_three_replicas(trained: Trained) -> None:
    """Equal up to the order of summation; test_deterministic.py tests that a run is repeatable."""
    one, three = trained(1), trained(3, "layout.stages=1")
    assert three.losses == pytest.approx(one.losses, rel=1e-6)
    assert three.validation == pytest.approx(one.validation, rel=1e-6)
