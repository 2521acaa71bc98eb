"""Tests that share ranks stay in one process of pytest-xdist."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.scheduling import LAUNCHES, group

TESTS = Path(__file__).parent
USES_POOLS = {
    "pools",
    "trained",
    "finished",
    "verified",
    "run_small",
}  # fixtures of tests/parallel/conftest.py

CONFTEST = """
import pytest
from tests.support.scheduling import Groups

def pytest_xdist_make_scheduler(config, log):
    return Groups(config, log)
"""
RECORD = """
import os, time
import pytest

@pytest.mark.parametrize("number", range(3))
def test(number):
    time.sleep(0.2)  # so that the other process would take some of them
    with open({log!r}, "a") as log:
        log.write({name!r} + " " + os.environ["PYTEST_XDIST_WORKER"] + "\\n")
"""


def test_groups() -> None:
    assert group("tests/parallel/test_equality.py::test_one_replica[1 stage]") == "pools"
    assert group("tests/parallel/test_failures.py::test_killed_rank") == "launches"
    assert group("tests/test_layout.py::test_ranks[2]") == "tests/test_layout.py::test_ranks[2]"


@pytest.mark.parametrize("module", sorted(LAUNCHES))
def test_launches_use_no_shared_pool(module: str) -> None:
    """Otherwise a second process would start the pools again."""
    tree = ast.parse((TESTS / "parallel" / f"{module}.py").read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert not USES_POOLS & {argument.arg for function in functions for argument in function.args.args}


@pytest.mark.slow
def test_a_group_runs_in_one_process(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "parallel").mkdir()
    log = tmp_path / "log.txt"
    for name in ("one", "two"):
        program = RECORD.format(log=str(log), name="pools")
        (tmp_path / "parallel" / f"test_{name}.py").write_text(program)
    (tmp_path / "parallel" / "test_idle.py").write_text(RECORD.format(log=str(log), name="launches"))
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", "-c", "/dev/null"]
    environment = {"PYTHONPATH": str(TESTS.parent), "PATH": "/usr/bin:/bin"}
    result = subprocess.run(
        [*command, f"--rootdir={tmp_path}", str(tmp_path)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    ran = [tuple(line.split()) for line in log.read_text().splitlines()]
    assert len(ran) == 9
    workers = {name: {worker for each, worker in ran if each == name} for name in ("pools", "launches")}
    assert len(workers["pools"]) == len(workers["launches"]) == 1
    assert workers["pools"] != workers["launches"]
