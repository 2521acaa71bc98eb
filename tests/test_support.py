"""Tests share code only through tests/support and tests/fixtures, where a reader looks for it."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: str(path.relative_to(TESTS)))
def test_no_module_imports_a_test(path: Path) -> None:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    imported = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    imported += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    last = {name.rpartition(".")[2] for name in imported if name.startswith("tests.")}
    assert not [name for name in last if name.startswith("test_") or name == "conftest"]
