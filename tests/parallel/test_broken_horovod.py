"""Horovod that is missing, or was built for another torch: said in one message, with how to rebuild it."""

import importlib.util
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.support.launch import REPOSITORY, run
from tests.support.refusals import assert_refused

pytestmark = pytest.mark.parallel

# Python runs a sitecustomize before anything else.
NOT_INSTALLED = """
import sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "horovod":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NotInstalled())
"""


def mpirun(overrides: list[str]) -> list[str]:
    """Return a command without horovodrun, which is part of Horovod."""
    return ["mpirun", "-np", "2", "--bind-to", "none", sys.executable, "-m", "trainer", *overrides]


def python_path(folder: Path) -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(REPOSITORY)])}


def test_horovod_not_installed(small: list[str], tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(NOT_INSTALLED)
    result = run(mpirun(small), tmp_path, env=python_path(tmp_path))
    assert_refused(result, tmp_path, "Horovod is not installed", "make setup")


def test_horovod_of_another_torch(small: list[str], tmp_path: Path) -> None:
    """Another torch has other symbols: rename those that Horovod's library imports from this one."""
    spec = importlib.util.find_spec("horovod")
    assert spec is not None
    assert spec.origin is not None
    shutil.copytree(Path(spec.origin).parent, tmp_path / "horovod", ignore=shutil.ignore_patterns("*.pyc"))
    (library,) = (tmp_path / "horovod" / "torch").glob("mpi_lib_v2*.so")
    renamed, count = re.subn(rb"(?<=\0_ZN)2at(?=[^\0]+\0)", b"2ax", library.read_bytes())
    assert count > 0
    library.write_bytes(renamed)
    result = run(mpirun(small), tmp_path, env=python_path(tmp_path))
    assert_refused(result, tmp_path, "built against another torch", "undefined symbol", "make setup")
