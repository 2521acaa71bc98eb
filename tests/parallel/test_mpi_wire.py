"""The wire over MPI, between real ranks."""

from pathlib import Path

import pytest

from tests.support.launch import horovodrun, run

pytestmark = pytest.mark.parallel


def test_every_kind_of_message_arrives_as_it_was_sent(tmp_path: Path) -> None:
    assert "exchanged" in run(horovodrun(2, [], module="tests.parallel.mpi_wire"), tmp_path).check().out
