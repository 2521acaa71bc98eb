"""How the trainer refuses wrong input."""

from pathlib import Path

from tests.support.launch import Result


def assert_refused(result: Result, folder: Path, *words: str) -> None:
    """Assert that the ranks printed one message with these words, and did nothing else."""
    assert result.code == 2, result.out + result.err
    assert len(result.messages) == 1, result.err
    for word in words:
        assert word in result.messages[0]
    assert "Traceback" not in result.out + result.err
    assert not list(folder.rglob("metrics.jsonl"))
    assert not result.left_over
