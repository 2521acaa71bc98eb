"""A run that was stopped goes on as if it had not been, also with other stages."""

import json
import shutil
from pathlib import Path

import pytest

from tests.parallel.conftest import GPT, Trained
from tests.parallel.launch import launch
from tests.parallel.runs import Finished

pytestmark = pytest.mark.parallel


def test_stopped_run_goes_on_with_other_stages(trained: Trained, small: list[str], tmp_path: Path) -> None:
    """It was stopped behind step 6, while its checkpoint was written: what is whole is that of step 3."""
    whole = trained(2)
    stopped = Finished(whole.result, shutil.copytree(whole.folder, tmp_path / "run"))
    stopped.checkpoint(6).rename(stopped.checkpoint(6).with_suffix(".partial"))
    overrides = ["layout.stages=3", "checkpoint.every=1", "checkpoint.keep=2"]
    result = launch(3, [*small, *GPT, *overrides], tmp_path).check()
    assert "resumed behind step 3" in result.out
    resumed = Finished(result, stopped.folder)
    assert [step["step"] for step in resumed.steps] == [1, 2, 3, 4, 5, 6]
    superseded = (resumed.folder / "superseded.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in superseded] == [item for item in whole.objects if item["step"] > 3]
    assert resumed.losses == whole.losses
    assert resumed.grad_norms == whole.grad_norms
    assert resumed.validation == whole.validation
    assert resumed.layer_files(6) == whole.layer_files(6)
    kept = [path.name for path in (resumed.folder / "checkpoints").iterdir()]
    assert sorted(kept) == ["step-00000005", "step-00000006"]


def test_checkpoint_by_its_path(trained: Trained, small: list[str], tmp_path: Path) -> None:
    whole = trained(2)
    resume = f"checkpoint.resume={whole.checkpoint(3)}"
    resumed = Finished(launch(1, [*small, *GPT, resume], tmp_path).check(), tmp_path / "run")
    assert [step["step"] for step in resumed.steps] == [4, 5, 6]
    assert resumed.losses == whole.losses[3:]
    assert resumed.layer_files(6) == whole.layer_files(6)


def test_run_that_is_done_has_nothing_to_do(trained: Trained, small: list[str], tmp_path: Path) -> None:
    whole = trained(2)
    shutil.copytree(whole.folder, tmp_path / "run")
    again = Finished(launch(1, [*small, *GPT], tmp_path).check(), tmp_path / "run")
    assert again.objects[: len(whole.objects)] == whole.objects
    assert again.losses == whole.losses
    assert again.written == whole.written
