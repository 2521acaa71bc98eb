"""A stopped run resumes as if it had never stopped, also with other stages."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.support.damage import DAMAGES
from tests.support.launch import Launch, horovodrun
from tests.support.pools import Pools
from tests.support.runs import GPT, Finished, Trained

pytestmark = pytest.mark.parallel

LONG = ["train.steps=14", "eval.every=0", "checkpoint.every=14"]


def test_stopped_run_resumes_with_other_stages(
    trained: Trained, small: list[str], pools: Pools, tmp_path: Path
) -> None:
    """It was stopped behind step 6, while its checkpoint was written: what is whole is that of step 3."""
    whole = trained(2)
    stopped = Finished(whole.result, shutil.copytree(whole.folder, tmp_path / "run"))
    stopped.checkpoint(6).rename(stopped.checkpoint(6).with_suffix(".partial"))
    overrides = ["layout.stages=3", "checkpoint.every=1", "checkpoint.keep=2"]
    result = pools.run(3, [*small, *GPT, *overrides], tmp_path).check()
    assert "resumed after step 3" in result.out
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


@pytest.mark.quick
def test_checkpoint_by_its_path(trained: Trained, small: list[str], pools: Pools, tmp_path: Path) -> None:
    whole = trained(2)
    resume = f"checkpoint.resume={whole.checkpoint(3)}"
    resumed = Finished(pools.run(1, [*small, *GPT, resume], tmp_path).check(), tmp_path / "run")
    assert [step["step"] for step in resumed.steps] == [4, 5, 6]
    assert resumed.losses == whole.losses[3:]
    assert resumed.layer_files(6) == whole.layer_files(6)


def test_finished_run_has_nothing_to_do(
    trained: Trained, small: list[str], pools: Pools, tmp_path: Path
) -> None:
    whole = trained(2)
    shutil.copytree(whole.folder, tmp_path / "run")
    again = Finished(pools.run(1, [*small, *GPT], tmp_path).check(), tmp_path / "run")
    assert again.objects[: len(whole.objects)] == whole.objects
    assert again.losses == whole.losses
    assert again.written == whole.written


def test_interrupted_again_and_again(
    trained: Trained, small: list[str], pools: Pools, tmp_path: Path
) -> None:
    """A rank is killed, and each time another number of stages goes on, from behind steps 1, 5 and 9."""
    whole = trained(2, *LONG)
    run = tmp_path / "run"
    for stages, step in ((2, 1), (3, 5), (1, 9)):
        overrides = [*small, *GPT, *LONG, f"layout.stages={stages}"]
        kill_after(step, stages, overrides, tmp_path)
        for later in (run / "checkpoints").iterdir():
            if later.name > f"step-{step:08d}":
                shutil.rmtree(later)
    overrides = [*small, *GPT, *LONG, "layout.stages=4"]
    resumed = Finished(pools.run(4, overrides, tmp_path).check(), run)
    assert "resumed after step 9" in resumed.result.out
    assert [step["step"] for step in resumed.steps] == list(range(1, 15))
    assert resumed.losses == whole.losses
    assert resumed.grad_norms == whole.grad_norms
    assert resumed.layer_files(14) == whole.layer_files(14)
    assert resumed.written == whole.written


def test_other_replicas_take_the_same_samples(
    trained: Trained, small: list[str], pools: Pools, tmp_path: Path
) -> None:
    whole = trained(2, *LONG)
    kill_after(5, 1, [*small, *GPT, *LONG], tmp_path)
    resumed = Finished(
        pools.run(3, [*small, *GPT, *LONG, "layout.stages=1"], tmp_path).check(), tmp_path / "run"
    )
    assert resumed.losses == pytest.approx(whole.losses, rel=1e-6)
    assert resumed.grad_norms == pytest.approx(whole.grad_norms, rel=1e-4)


def kill_after(step: int, ranks: int, overrides: list[str], folder: Path) -> None:
    """Train until the checkpoint of a step is complete, then kill the launch."""
    # Keep all: where steps are quick, two more may be written before the next look.
    saving = [*overrides, "checkpoint.every=1", "checkpoint.keep=0"]
    alone = [sys.executable, "-m", "trainer", *saving]
    running = Launch(alone if ranks == 1 else horovodrun(ranks, saving), folder)
    running.wait_for_file(folder / "run" / "checkpoints" / f"step-{step:08d}" / "manifest.json")
    running.kill()


def test_damaged_checkpoints_are_passed_over_for_the_newest_whole_one(
    trained: Trained, small: list[str], pools: Pools, tmp_path: Path
) -> None:
    """Each on the ranks that hold what is damaged; then there are only damaged ones."""
    whole = trained(2)
    run = Finished(whole.result, shutil.copytree(whole.folder, tmp_path / "run"))
    shutil.rmtree(run.checkpoint(6))
    for number, damage in enumerate(DAMAGES.values(), 10):
        shutil.copytree(run.checkpoint(3), run.checkpoint(number))
        damage(run.checkpoint(number))
    (run.checkpoints / "step-00000100").mkdir()
    shutil.copytree(run.checkpoint(3), run.checkpoints / "step-00000200.partial")
    overrides = [*small, *GPT, "layout.stages=3", "checkpoint.keep=1"]
    result = pools.run(3, overrides, tmp_path).check()
    assert "resumed after step 3" in result.out
    passed_over = [line for line in result.err.splitlines() if "passed over a checkpoint: " in line]
    assert len(passed_over) == len(DAMAGES) + 1
    assert run.losses == whole.losses
    assert run.layer_files(6) == whole.layer_files(6)
    assert not list(run.checkpoints.glob("*.partial"))
    assert not run.checkpoint(3).exists()
    shutil.rmtree(run.checkpoint(6))
    refused = pools.run(3, overrides, tmp_path)
    assert refused.code == 2, refused.err
    assert len(refused.messages) == 1
    assert "step-00000100" in refused.messages[0]
    assert f"none of the {len(DAMAGES) + 1} checkpoints beside it is whole" in refused.messages[0]


def test_one_damaged_checkpoint_by_its_path(
    trained: Trained, small: list[str], pools: Pools, tmp_path: Path
) -> None:
    checkpoint = shutil.copytree(trained(2).checkpoint(3), tmp_path / "step-00000003")
    DAMAGES["layers exchanged"](checkpoint)
    refused = pools.run(2, [*small, *GPT, f"checkpoint.resume={checkpoint}"], tmp_path)
    assert refused.code == 2, refused.err
    assert len(refused.messages) == 1
    assert "it is of layer block." in refused.messages[0]


GROUP_STEP = """
import torch

class CountsInGroup(torch.optim.Optimizer):
    def __init__(self, groups, lr):
        super().__init__(groups, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            for p in group["params"]:
                last = self.state[p].setdefault("last", [])
                last.append(p.grad.clone())
                del last[:-3]
                p.sub_(sum(last) / group["step"], alpha=group["lr"])

class Sums(CountsInGroup):
    def step(self, closure=None):
        super().step()
        for group in self.param_groups:
            group["sum"] = sum(float(p.grad.sum()) for p in group["params"])
"""


def test_what_a_custom_optimizer_keeps(small: list[str], pools: Pools, tmp_path: Path) -> None:
    """Two stages, two replicas, sharded; then three stages. A sum over a rank's parameters is refused."""
    (tmp_path / "own_optimizer.py").write_text(GROUP_STEP)
    own = ["optimizer=custom", "optimizer.lr=0.01", "model.blocks=3", "generate.tokens=0", "eval.every=0"]
    own += ["optimizer.lr_schedule.warmup=0", "optimizer.lr_schedule.name=constant", "optimizer.clip=null"]
    own += ["optimizer.target=own_optimizer:CountsInGroup"]
    whole = Finished(
        pools.run(1, [*small, *own, "train.steps=6", "run.dir=whole"], tmp_path).check(), tmp_path / "whole"
    )
    sharded = ["layout.stages=2", "optimizer.sharded=true", "train.steps=3", "run.dir=parts"]
    pools.run(4, [*small, *own, *sharded], tmp_path).check()
    resumed = pools.run(3, [*small, *own, "layout.stages=3", "train.steps=6", "run.dir=parts"], tmp_path)
    assert Finished(resumed.check(), tmp_path / "parts").losses == pytest.approx(whole.losses, rel=1e-4)

    sums = ["optimizer.target=own_optimizer:Sums", "layout.stages=2", "train.steps=3", "run.dir=sums"]
    refused = pools.run(2, [*small, *own, *sums], tmp_path)
    assert refused.code == 2, refused.err
    assert len(refused.messages) == 1
    assert "keeps 'sum' in its parameter groups" in refused.messages[0]
