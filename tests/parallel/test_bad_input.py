"""Wrong input: one clear message from one rank, exit code 2, no training, no files, no processes."""

import shutil
from pathlib import Path

import pytest

from tests.support.launch import horovodrun, launch, run
from tests.support.refusals import assert_refused
from tests.support.runs import GPT, Ranks, Trained

pytestmark = pytest.mark.parallel


@pytest.mark.parametrize(
    ("ranks", "overrides", "words"),
    [
        pytest.param(3, ["layout.stages=2"], ["world size 3", "layout.stages=2", "1, 3"], id="world"),
        pytest.param(
            2,
            ["layout.stages=4", "layout.devices_per_rank=2", "model.blocks=1"],
            ["layout.stages=4", "3 layers"],
            id="more stages than layers",
        ),
        pytest.param(
            2,
            ["layout.stages=1", "batch.global_size=4", "batch.micro_size=4"],
            ["batch.global_size", "1 micro-batch", "2 replicas"],
            id="fewer micro-batches than replicas",
        ),
        pytest.param(
            2, ["model.widht=64"], ["no key model.widht", "did you mean model.width?"], id="unknown key"
        ),
        pytest.param(
            2, ["+model.widht=64"], ["no key model.widht", "did you mean width?"], id="unknown key, added"
        ),
        pytest.param(
            2, ["schedule=1b1f"], ["schedule=1b1f", "gpipe, 1f1b", "did you mean 1f1b?"], id="unknown choice"
        ),
        pytest.param(
            2,
            ["model=gtp"],
            ["model=gtp", "hf, module, resnet, simplenet", "did you mean gpt?"],
            id="unknown group",
        ),
        pytest.param(
            2,
            ["--multirun", "seed=1"],
            ["unrecognized arguments: seed=1", "before or after all overrides"],
            id="an option between overrides",
        ),
        pytest.param(2, ["--nonsense"], ["trainer: error: unrecognized"], id="unknown option"),
        pytest.param(2, ["model.width=wide"], ["model.width", "'wide'", "Integer"], id="wrong type"),
        pytest.param(2, ["model.dropout=1.5"], ["model.dropout=1.5", "from 0 to below 1"], id="out of range"),
        pytest.param(2, ["data.path=nowhere.txt"], ["data.path=nowhere.txt"], id="missing data"),
        pytest.param(
            2,
            ["train.freeze=[blok.*]"],
            ["train.freeze", "'blok.*'", "did you mean block."],
            id="freeze pattern without a match",
        ),
        pytest.param(
            2,
            ["optimizer.groups=[{match: block.*, lr: 0.1},{match: heat, lr: 0.1}]"],
            ["optimizer.groups.1.match", "'heat'", "did you mean head?"],
            id="group without a match",
        ),
    ],
)
def test_bad_value(
    ranks: int, overrides: list[str], words: list[str], run_small: Ranks, tmp_path: Path
) -> None:
    assert_refused(run_small(ranks, *overrides), tmp_path, *words)


@pytest.mark.parametrize(
    ("ranks", "overrides", "word"),
    [
        pytest.param(
            2, ["model.widht=64"], "no key model.widht", id="before MPI starts", marks=pytest.mark.quick
        ),
        pytest.param(3, ["layout.stages=2"], "world size 3", id="by all ranks"),
    ],
)
def test_end_of_all_ranks(ranks: int, overrides: list[str], word: str, tmp_path: Path) -> None:
    """Launched as users do: a pool would pick one of its ranks' messages itself."""
    files = ["model=simplenet", "data=binary", "run.dir=run", "threads=1", "device=cpu"]
    assert_refused(launch(ranks, [*files, *overrides], tmp_path), tmp_path, word)


def test_empty_data(run_small: Ranks, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    result = run_small(2, "data.path=empty.txt")
    assert_refused(result, tmp_path, "empty.txt", "empty")


def test_text_shorter_than_a_sample(run_small: Ranks, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("x" * 20)
    result = run_small(2, "data.path=short.txt")
    assert_refused(result, tmp_path, "short.txt", "too short", "20 tokens", "data.context=32")


def test_gloo(tmp_path: Path) -> None:
    assert_refused(run(horovodrun(2, [], options=["--gloo"]), tmp_path), tmp_path, "--gloo")


def test_checkpoint_of_another_model(trained: Trained, run_small: Ranks, tmp_path: Path) -> None:
    checkpoint = trained(1).checkpoint(6)
    result = run_small(2, f"checkpoint.resume={checkpoint}", "model.blocks=4")
    assert_refused(result, tmp_path, str(checkpoint), "another model", "5 layers", "6")


def test_checkpoint_of_another_width(trained: Trained, run_small: Ranks, tmp_path: Path) -> None:
    checkpoint = trained(1).checkpoint(6)
    overrides = [f"checkpoint.resume={checkpoint}", "model.blocks=3", "model.width=48"]
    assert_refused(run_small(2, *overrides), tmp_path, "another model", "(256, 32)", "(256, 48)")


def test_damaged_checkpoint(trained: Trained, small: list[str], tmp_path: Path) -> None:
    """One flipped bit, in a file that only the last rank reads: it alone refuses, while the others wait."""
    checkpoint = shutil.copytree(trained(1).checkpoint(6), tmp_path / "step-00000006")
    head = checkpoint / "layers" / "head.safetensors"
    data = bytearray(head.read_bytes())
    data[-1] ^= 1
    head.write_bytes(data)
    result = launch(2, [*small, f"checkpoint.resume={checkpoint}", "model.blocks=3"], tmp_path)
    assert_refused(result, tmp_path, str(checkpoint), "damaged", "head.safetensors")


def test_missing_checkpoint(run_small: Ranks, tmp_path: Path) -> None:
    result = run_small(2, "checkpoint.resume=nowhere")
    assert_refused(result, tmp_path, "checkpoint.resume=nowhere", "no manifest.json")


def test_resuming_with_other_data(trained: Trained, run_small: Ranks, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("another text " * 1000)
    checkpoint = trained(1).checkpoint(6)
    overrides = [*GPT, f"checkpoint.resume={checkpoint}", "data.path=other.txt"]
    result = run_small(2, *overrides)
    assert_refused(result, tmp_path, "other data", "after 90 samples", f"checkpoint.warm_start={checkpoint}")


def test_warm_start_of_another_width(trained: Trained, run_small: Ranks, tmp_path: Path) -> None:
    checkpoint = trained(1).checkpoint(6)
    overrides = [*GPT, f"checkpoint.warm_start={checkpoint}", "model.width=48"]
    result = run_small(2, *overrides)
    assert_refused(
        result, tmp_path, str(checkpoint), "(256, 32)", "(256, 48)", "checkpoint.warm_start_layers"
    )


ONE_RANK_DIFFERS = """
import sys
from trainer.__main__ import main
from trainer.distributed.environment import rank
if rank() == 1:
    sys.argv.append("optimizer.lr=0.5")
main()
"""


def test_ranks_with_different_configuration(small: list[str], tmp_path: Path) -> None:
    (tmp_path / "one_rank_differs.py").write_text(ONE_RANK_DIFFERS)
    result = launch(
        2, small, tmp_path, module="one_rank_differs", env={"PYTHONPATH": f"{Path.cwd()}:{tmp_path}"}
    )
    assert_refused(result, tmp_path, "optimizer.lr", "'0.001' on rank 0", "'0.5' on rank 1")
