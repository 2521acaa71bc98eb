"""A logger, a command and a replication strategy, each added in one file: see tests/toys."""

import csv
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from tests.support.pools import Pools
from tests.support.refusals import assert_refused
from tests.support.runs import Finished
from trainer.config.schema import BinaryConfig
from trainer.data.binary import binary
from trainer.data.order import Order
from trainer.seeds import derive

pytestmark = pytest.mark.parallel

SIMPLE = ["experiment=simplenet", "run.dir=run", "threads=1", "device=cpu", "layout.stages=1"]
LOCAL = [
    "update=custom",
    "update.target=tests.toys.local:Local",
    "+update.options.every=2",
    "optimizer.lr=0.5",
]
BATCH = 100


def test_a_logger_sees_every_event_on_every_rank(pools: Pools, tmp_path: Path) -> None:
    overrides = [
        "train.steps=3",
        "checkpoint.every=2",
        "eval.every=2",
        "logger=[tests.toys.logger:build,csv]",
    ]
    run = Finished(pools.run(2, [*SIMPLE, *overrides], tmp_path).check(), tmp_path / "run")
    diaries = [(run.folder / f"diary{rank}.txt").read_text().splitlines() for rank in range(2)]
    losses, validation = [repr(loss) for loss in run.losses], [repr(loss) for loss in run.validation]
    for rank, diary in enumerate(diaries):
        if rank > 0:  # it goes on while the first replica writes
            diary[:] = [line.replace("False", "True") for line in diary]
        assert diary == [
            "begin 0 of 3",
            f"step 1 {losses[0]}",
            f"step 2 {losses[1]}",
            "checkpoint 2 step-00000002 True",
            f"validation 2 {validation[0]}",
            f"step 3 {losses[2]}",
            "checkpoint 3 step-00000003 True",
            f"validation 3 {validation[1]}",
            "end",
        ]
    with (run.folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in rows if row["loss"]] == run.losses
    assert [float(row["val_loss"]) for row in rows if row["val_loss"]] == run.validation


def test_a_logger_is_told_of_a_failure(pools: Pools, tmp_path: Path) -> None:
    failing = [
        "model=custom",
        "model.target=tests.support.models:failing",
        "logger=[tests.toys.logger:build]",
    ]
    result = pools.run(1, [*SIMPLE, *failing], tmp_path)
    assert result.code == 1
    assert (tmp_path / "run" / "diary0.txt").read_text().splitlines()[-1] == "failure ArithmeticError"


def test_a_custom_metric_is_added_over_all_replicas(pools: Pools, tmp_path: Path) -> None:
    def values(ranks: int, stages: int) -> dict[str, float]:
        folder = tmp_path / f"{ranks} {stages}"
        folder.mkdir()
        metrics = "metrics=[accuracy,tests.support.models:positives]"
        overrides = [*SIMPLE, metrics, "train.steps=3", f"layout.stages={stages}"]
        run = Finished(pools.run(ranks, overrides, folder).check(), folder / "run")
        return dict(run.objects[-1])

    alone, cut, replicated = values(1, 1), values(2, 2), values(2, 1)
    assert set(alone) == {"step", "val_loss", "val_accuracy", "val_positives"}
    assert 0 < alone["val_positives"] < 1
    assert cut == alone
    assert replicated == pytest.approx(alone)


def test_a_metric_that_returns_no_pair_is_refused_in_the_first_step(pools: Pools, tmp_path: Path) -> None:
    result = pools.run(2, [*SIMPLE, "metrics=[tests.support.models:no_pair]"], tmp_path)
    assert_refused(
        result,
        tmp_path,
        "it must return a sum and a count",
        "in the metric 'no_pair': micro-batch 0 of step 1",
    )


def test_an_unknown_logger_is_refused(pools: Pools, tmp_path: Path) -> None:
    result = pools.run(2, [*SIMPLE, "logger=[cvs]"], tmp_path)
    assert_refused(result, tmp_path, "logger=cvs is not one of csv", "did you mean csv?")


def test_a_command(pools: Pools, tmp_path: Path) -> None:
    result = pools.run(2, ["model=simplenet", "data=binary"], tmp_path, module="tests.toys.command").check()
    assert result.out == "simplenet on ranks [0, 1]\n"
    refused = pools.run(2, ["model.widht=3"], tmp_path, module="tests.toys.command")
    assert_refused(refused, tmp_path, "no key model.widht")


def plain_local_steps(steps: int, every: int) -> list[nn.Sequential]:
    """Return two replicas of SimpleNet, trained by a plain loop with means of weights every few steps."""
    data = binary(BinaryConfig()).training
    replicas = []
    for _ in range(2):
        layers = []
        for name, build in (("linear1", lambda: nn.Linear(10, 20)), ("linear2", lambda: nn.Linear(20, 1))):
            torch.manual_seed(derive(0, "weights", name))
            layers.append(build())
        replicas.append(nn.Sequential(layers[0], nn.ReLU(), layers[1]))
    order = Order(len(data), seed=0)
    for step in range(1, steps + 1):
        samples = order.samples((step - 1) * BATCH, BATCH)
        for model, mine in zip(replicas, (samples[: BATCH // 2], samples[BATCH // 2 :]), strict=True):
            loss = F.binary_cross_entropy_with_logits(
                model(data.inputs(mine)).reshape(-1), data.targets(mine)
            )
            model.zero_grad()
            loss.backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.sub_(0.5 * parameter.grad)
        if step % every == 0:
            with torch.no_grad():
                for one, other in zip(*(model.parameters() for model in replicas), strict=True):
                    mean = (one + other) / 2
                    one.copy_(mean)
                    other.copy_(mean)
    return replicas


def weights(run: Finished, step: int) -> list[torch.Tensor]:
    found = []
    for layer in ("linear1", "linear2"):
        tensors = load_file(run.checkpoint(step) / "layers" / f"{layer}.safetensors")
        found += [tensors["weight.weight"], tensors["weight.bias"]]
    return found


def test_a_replication_strategy_trains_as_a_plain_loop_does(pools: Pools, tmp_path: Path) -> None:
    """And what it keeps of itself is in checkpoints: resumed after step 3, it averages at step 4."""
    overrides = [*SIMPLE, *LOCAL, "train.steps=4", "checkpoint.every=1", "checkpoint.keep=0"]
    run = Finished(pools.run(2, overrides, tmp_path).check(), tmp_path / "run")
    for step in (1, 2, 3, 4):
        first, second = plain_local_steps(step, every=2)
        for seen, expected in zip(weights(run, step), first.parameters(), strict=True):
            torch.testing.assert_close(seen, expected.detach(), rtol=1e-5, atol=1e-6)
        apart = any(
            not torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
        )
        assert apart == (step % 2 == 1)
    progress = json.loads((run.checkpoint(3) / "progress.json").read_text())
    assert progress["replication"] == {"updates": 3}


def test_a_strategy_that_is_none_is_refused(pools: Pools, tmp_path: Path) -> None:
    target = ["update=custom", "update.target=tests.toys.local:NoStrategy"]
    result = pools.run(2, [*SIMPLE, *target], tmp_path)
    assert_refused(result, tmp_path, "update.target=tests.toys.local:NoStrategy returned NoStrategy")
