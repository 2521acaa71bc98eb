"""The table of tests that `make test` leaves out."""

import pytest

from tests.support.thorough import collected, is_thorough, stale


def test_every_pattern_names_tests_and_every_file_keeps_some(request: pytest.FixtureRequest) -> None:
    if request.config.args != request.config.getini("testpaths"):
        pytest.skip("only the whole suite shows it")
    assert stale(collected) == []
    files = {test.partition("::")[0] for test in collected}
    left = {test.partition("::")[0] for test in collected if not is_thorough(test)}
    assert files == left, "make test would run nothing of a file"
