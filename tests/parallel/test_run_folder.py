"""The files and the output of a run."""

import math
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.support.launch import launch
from tests.support.runs import Trained
from trainer.config.schema import Config

pytestmark = pytest.mark.parallel

STEP_KEYS = {
    "step",
    "loss",
    "grad_norm",
    "lr",
    "step_seconds",
    "samples_per_second",
    "bubble",
    "bubble_predicted",
    "cpu_seconds",
    "peak_memory_bytes",
}
NEVER_LESS = 50e6  # bytes; any process with torch uses more


def test_folder(trained: Trained) -> None:
    folder = trained(3, "layout.stages=3").folder
    found = {path.name for path in folder.iterdir()}
    assert found == {
        "config.yaml",
        "metrics.jsonl",
        "timeline.json",
        "schedule.txt",
        "logs",
        "checkpoints",
    }
    assert {path.name for path in (folder / "logs").iterdir()} == {"rank0.log", "rank1.log", "rank2.log"}
    beside = {path.name for path in folder.parent.iterdir() if path.suffix != ".txt"}
    assert beside == {"run"}


def test_configuration_reads_back(trained: Trained) -> None:
    written = OmegaConf.load(trained(3, "layout.stages=3").folder / "config.yaml")
    assert set(written) == set(vars(Config()))
    assert written.layout.stages == 3
    assert written.model.blocks == 3
    assert written.data.context == written.model.context == 32
    assert not OmegaConf.missing_keys(written)


def test_metrics(trained: Trained) -> None:
    run = trained(3, "layout.stages=3")
    assert [set(step) for step in run.steps] == [STEP_KEYS] * 6
    assert [step["step"] for step in run.steps] == [1, 2, 3, 4, 5, 6]
    validations = [item for item in run.objects if item not in run.steps]
    assert [item["step"] for item in validations] == [3, 6]
    assert [set(item) for item in validations] == [
        {"step", "val_loss", "val_perplexity", "val_bits_per_byte"}
    ] * 2
    for item in validations:  # bytes are the tokens
        assert item["val_perplexity"] == pytest.approx(math.exp(item["val_loss"]))
        assert item["val_bits_per_byte"] == pytest.approx(item["val_loss"] / math.log(2))
    for step in run.steps:
        assert len(step["peak_memory_bytes"]) == len(step["cpu_seconds"]) == 3
        assert min(step["cpu_seconds"]) > 0
        assert min(step["peak_memory_bytes"]) > NEVER_LESS
        assert 0 <= step["bubble"] <= 1
        assert 0 < step["bubble_predicted"] < 1
        assert step["samples_per_second"] == pytest.approx(15 / step["step_seconds"])


def test_peak_memory_is_of_one_group(trained: Trained) -> None:
    for step in trained(4, "layout.stages=2").steps:
        assert len(step["peak_memory_bytes"]) == 2


def test_rank_0_alone_prints_whole_lines(trained: Trained) -> None:
    result = trained(3, "layout.stages=3").result
    assert result.speakers == {0}
    assert result.out.count("gpt: 3 ranks = 1 replica x 3 stages") == 1
    for line in (
        "step 1/6  loss ",
        "step 6/6  loss ",
        "step 3  validation loss ",
        "step 6  validation loss ",
    ):
        assert sum(found.startswith(line) for found in result.out.splitlines()) == 1


def test_text_is_written_once(trained: Trained) -> None:
    run = trained(3, "layout.stages=3")
    assert run.result.out.count("the model writes:") == 1
    assert run.written.startswith("def ")
    assert len(run.written.strip()) > len("def ")


def test_progress_off(small: list[str], tmp_path: Path) -> None:
    result = launch(2, [*small, "progress=off", "train.steps=1", "eval.samples=2"], tmp_path).check()
    assert result.out == ""
    assert result.speakers == set()
    assert (tmp_path / "run" / "metrics.jsonl").exists()
