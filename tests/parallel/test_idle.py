"""Waiting costs almost no CPU time, as ranks may share cores with ranks that compute."""

from pathlib import Path

import pytest

from tests.support.launch import horovodrun, is_mpich, run

pytestmark = pytest.mark.parallel


def test_waiting_ranks_do_not_spin(tmp_path: Path) -> None:
    """Two replicas of two stages: ranks waiting in a receive, and Horovod's threads, hardly use a core."""
    result = run(horovodrun(4, [], module="tests.support.idle"), tmp_path).check()
    burnt = [float(seconds) for seconds in result.out.split("burnt", 1)[1].split()]
    assert len(burnt) == 4
    most = 1.0 if is_mpich() else 0.2  # of two seconds; spinning would be two
    assert max(burnt) < most, burnt
