"""Every run has its own folder, even if others start in the same second; a given folder is kept."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.configs import valid
from tests.support.thread_ranks import on_ranks
from trainer.config.run_dir import place_sweep, resolve_run_dir
from trainer.errors import UserError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_ranks_share_a_new_folder_that_no_other_run_gets(folder: Path) -> None:
    found = []
    for _ in range(20):  # more than one a second on any machine
        outcomes = on_ranks(lambda rank: resolve_run_dir(None, rank), local_ranks=(0, 1, 2))
        assert len(set(outcomes)) == 1
        assert outcomes[0].is_dir()
        found.append(outcomes[0])
    assert len(set(found)) == 20
    assert sorted(path.name for path in (folder / "runs").iterdir()) == sorted(path.name for path in found)
    assert all(path.parent == Path("runs") for path in found)


LAUNCH = """
import sys
from trainer.config.run_dir import resolve_run_dir

class Alone:
    rank = 0
    def all_gather_objects(self, value):
        return [value]

print("ready", flush=True)
sys.stdin.readline()
for _ in range(10):
    print(resolve_run_dir(None, Alone()))
"""


def test_processes_that_start_together_share_none() -> None:
    """Four jobs of an array in one folder."""
    jobs: list[Any] = [
        subprocess.Popen(
            [sys.executable, "-c", LAUNCH],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"PYTHONPATH": str(Path(__file__).parents[1])},
        )
        for _ in range(4)
    ]
    for job in jobs:
        assert job.stdout.readline() == "ready\n"
    for job in jobs:
        job.stdin.write("go\n")
        job.stdin.flush()
    found = [line for job in jobs for line in job.communicate()[0].splitlines()]
    assert len(found) == len(set(found)) == 40


def test_a_given_folder_stays_as_it_is(folder: Path) -> None:
    assert on_ranks(lambda rank: resolve_run_dir("mine", rank)) == [Path("mine")] * 2
    (folder / "mine").mkdir()
    assert on_ranks(lambda rank: resolve_run_dir("mine", rank)) == [Path("mine")] * 2
    assert [path.name for path in folder.iterdir()] == ["mine"]


def test_every_rank_raises_where_no_folder_can_be_created(folder: Path) -> None:
    (folder / "runs").write_text("a file")
    errors = on_ranks(lambda rank: resolve_run_dir(None, rank), local_ranks=(0, 1, 0))
    assert {type(error) for error in errors} == {UserError}
    (message,) = {str(error) for error in errors}
    assert message.startswith("run.dir=runs/<time> cannot be made: ")


@pytest.mark.parametrize("given", [None, "mine"])
def test_runs_of_a_sweep_are_numbered_in_one_folder(given: str | None, folder: Path) -> None:
    def sweep(rank: Any) -> list[str | None]:
        configs = [valid(), valid(), valid()]
        for config in configs:
            config.run.dir = given
        place_sweep(configs, "the record", rank)
        return [config.run.dir for config in configs]

    one, other = on_ranks(sweep)
    assert one == other
    parents = {Path(path).parent for path in one}
    (parent,) = parents
    assert [Path(path).name for path in one] == ["0", "1", "2"]
    assert parent == Path("mine") if given else parent.parent == Path("runs")
    assert [path.name for path in parent.iterdir()] == ["multirun.yaml"]
    assert (parent / "multirun.yaml").read_text() == "the record"
