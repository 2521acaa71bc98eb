"""Plans: what a run will be, for worlds that are not here; and the command that compares them."""

import re
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from trainer.config.schema import (
    AdamWConfig,
    Config,
    DataConfig,
    GPTConfig,
    SynchronousConfig,
    TextConfig,
)
from trainer.data.build import example_data
from trainer.distributed.layout import micro_batch_sizes
from trainer.errors import UserError
from trainer.models.build import build_model
from trainer.pipeline.recomputation import Recompute
from trainer.plan.hardware import Hardware, predict_step
from trainer.plan.memory import predict
from trainer.plan.plan import Plan, model_costs
from trainer.plan.report import report
from trainer.plan.search import search, settle, with_values
from trainer.schedule.machine import Link
from trainer.schedule.resolve import resolve

REPOSITORY = Path(__file__).parents[1]
MODEL = GPTConfig(blocks=6, width=64, heads=4, context=32, dropout=0.0)
HARDWARE = Hardware(1e9, inside=Link(1e-5, 1e9), between=Link(1e-4, 1e8))


def config(**values: Any) -> Config:
    """Return a configuration with some values, by dotted key with double underscores."""
    data: DataConfig = TextConfig(context=MODEL.context, cache="")
    made = Config(model=replace(MODEL), data=data, optimizer=AdamWConfig(), update=SynchronousConfig())
    made.train.steps = 1
    made.batch.global_size, made.batch.micro_size = 40, 2
    return with_values(made, {key.replace("__", "."): value for key, value in values.items()})


@cache
def model_and_costs() -> tuple[Any, Any]:
    made = config()
    data = example_data(made.data)
    model = build_model(made.model, data)
    return model, model_costs(made, model, data)


def plan(world: int, **values: Any) -> Plan:
    made = config(**values)
    return Plan(made, *model_and_costs(), world, resolve(made.schedule))


def most_bytes(found: Plan) -> int:
    """Return the most that any rank of any replica holds."""
    return max(
        predict(found.partition, schedule, found.optimizer_state, found.shards).total(rank)
        for schedule in found.schedules
        for rank in range(found.layout.ranks_per_group)
    )


def test_every_replica_has_its_schedule() -> None:
    """Twenty micro-batches on three replicas: 7, 7 and 6."""
    found = plan(6, layout__stages=2)
    assert found.shares == [7, 7, 6]
    assert [schedule.micro_batches for schedule in found.schedules] == found.shares
    assert [list(found.micro_batches(replica)) for replica in range(3)] == [
        list(range(7)),
        list(range(7, 14)),
        list(range(14, 20)),
    ]
    found.validate()


@pytest.mark.parametrize("schedule", ["1f1b", "zb_v"])
@pytest.mark.parametrize("share", [0.4, 0.7])
def test_the_limit_holds_for_the_schedules_that_run(schedule: str, share: float) -> None:
    """Recomputation changes what backwards take, and with that the order of ZB-V, of every share."""
    free = plan(6, layout__stages=2, schedule=schedule)
    tight = plan(6, layout__stages=2, schedule=schedule, memory__recompute="full")
    limit = int(most_bytes(tight) + share * (most_bytes(free) - most_bytes(tight)))
    fitted = plan(6, layout__stages=2, schedule=schedule, memory__limit=limit)
    assert most_bytes(fitted) <= limit < most_bytes(free)
    assert any(mode is not Recompute.NONE for mode in fitted.partition.recompute)
    fitted.validate()


def test_a_sharded_optimizer_frees_what_the_limit_asks_for() -> None:
    """Its state is divided among four replicas: what fits then does not fit without, whatever recomputes."""
    whole, sharded = (plan(4, layout__stages=1, optimizer__sharded=each) for each in (False, True))
    weights = sum(cost.parameter_bytes for cost in whole.partition.costs)
    saved = whole.memory.fixed[0] - sharded.memory.fixed[0]
    largest = max(size for cost in whole.partition.costs for size in cost.trained_bytes.values())
    assert 2 * weights * 3 / 4 - 2 * largest <= saved <= 2 * weights * 3 / 4
    limit = most_bytes(sharded)
    fitted = plan(4, layout__stages=1, optimizer__sharded=True, memory__limit=limit)
    assert set(fitted.partition.recompute) == {Recompute.NONE}
    with pytest.raises(UserError, match=r"memory.limit=.* is too small"):
        plan(4, layout__stages=1, memory__limit=limit)


def test_frozen_parameters_need_neither_gradients_nor_state() -> None:
    _, costs = model_and_costs()
    found = plan(1)
    weights = sum(cost.parameter_bytes for cost in costs)
    assert found.memory.fixed == (4 * weights,)
    frozen = [replace(cost, trained=0, trained_bytes={}) for cost in costs]
    made = config()
    assert Plan(made, model_and_costs()[0], frozen, 1, resolve("1f1b")).memory.fixed == (weights,)


@pytest.mark.parametrize(
    ("world", "values", "words"),
    [
        (3, {"layout__stages": 2}, "world size 3"),
        (8, {"layout__stages": 9}, "layout.stages=9"),
        (64, {"layout__stages": 2, "batch__global_size": 40}, "20 micro-batches, but there are 32 replicas"),
        (3, {"layout__stages": 1, "averaging__op": "adasum"}, "averaging.op=adasum"),
        (2, {"memory__limit": "100KiB"}, "memory.limit=100.0 KiB"),
        (2, {"layout__boundaries": [9]}, "layout.boundaries=[9]"),
    ],
)
def test_refusals(world: int, values: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        plan(world, **values)


@cache
def candidates(memory: str | None, **values: Any) -> tuple[Any, Any]:
    made = config(plan__ranks=8, plan__memory=memory, **values)
    fixed = frozenset(key.replace("__", ".") for key in values)
    return search(made, *model_and_costs(), fixed=fixed, hardware=HARDWARE)


def test_every_layout_is_compared() -> None:
    """There are eight layers: too few for eight workers with two stages each."""
    fits, misfits = candidates(None)
    found = {(each.plan.layout.workers, each.overrides["schedule"]) for each in fits}
    names = ("gpipe", "1f1b", "zb_h1", "interleaved", "zb_v")
    several = {(workers, name) for workers in (2, 4, 8) for name in names}
    too_many = {(8, "interleaved"), (8, "zb_v")}
    assert found == {(1, "1f1b"), *several} - too_many
    assert {(each.overrides["layout.stages"], each.overrides["schedule"]) for each in misfits} == too_many
    ways = [each.overrides for each in fits if each.plan.layout.workers == 2]
    assert {(each["memory.recompute"], each["optimizer.sharded"]) for each in ways} == {
        (mode.value, sharded) for mode in Recompute for sharded in (False, True)
    }
    seconds = [each.step.seconds for each in fits]
    assert seconds == sorted(seconds)


def test_what_fits_is_within_the_memory_and_what_does_not_is_beyond() -> None:
    everything, _ = candidates(None)
    sizes = sorted(each.bytes for each in everything)
    middle = sizes[len(sizes) // 2]
    fits, misfits = candidates(str(middle))
    assert fits
    assert all(each.bytes <= middle for each in fits)
    assert all(each.bytes > middle for each in misfits if each.bytes is not None)
    as_needed = [each for each in fits if each.overrides["memory.limit"] is not None]
    assert as_needed
    for each in as_needed:  # nothing that recomputes everywhere in one way is both faster and small enough
        assert most_bytes(each.plan) <= middle


def test_the_first_is_predicted_with_the_schedule_of_the_run() -> None:
    fits, _ = candidates(None, schedule="zb_v", layout__stages=4)
    settled = settle(fits[0], HARDWARE)
    made = config(plan__ranks=8, schedule="zb_v", layout__stages=4)
    for key, value in fits[0].overrides.items():
        part, _, name = key.rpartition(".")
        if part:
            setattr(getattr(made, part), name, value)
    run = Plan(made, *model_and_costs(), 8, resolve("zb_v"))
    assert settled.plan.schedules == run.schedules
    assert settled.step.seconds == predict_step(run, HARDWARE).seconds
    assert settled.step.seconds <= fits[0].step.seconds


def test_all_reduces_and_slow_networks_take_their_time() -> None:
    found = plan(8, layout__stages=2)
    slow = Hardware(1e9, inside=Link(1e-5, 1e9), between=Link(1e-4, 1e7), ranks_per_node=2)
    alone = plan(2, layout__stages=2, batch__global_size=10)
    at_once = Hardware(1e9, inside=Link(), between=Link())
    assert predict_step(found, slow).seconds > predict_step(found, HARDWARE).seconds
    assert predict_step(found, HARDWARE).seconds > predict_step(alone, HARDWARE).seconds
    assert predict_step(found, at_once).seconds == pytest.approx(predict_step(alone, at_once).seconds)
    assert sum(map(len, predict_step(found, HARDWARE).all_reduces)) == len(found.partition.costs)


def test_a_large_world_needs_no_ranks() -> None:
    found = plan(1024, layout__stages=4, batch__global_size=1024)
    assert found.layout.replicas == 256
    assert found.shares == [2] * 256
    assert len(micro_batch_sizes(1024, 2)) == 512


ARGUMENTS = [
    "model.blocks=6",
    "model.width=64",
    "model.heads=4",
    "model.context=32",
    "data.path=not/on/this/machine.txt",
]


def run_command(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    code = (
        "import sys; from trainer.plan.__main__ import main; main(); "
        "print('loaded', sorted({'mpi4py', 'horovod', 'torch._dynamo.eval_frame'} & {*sys.modules}))"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *ARGUMENTS, *arguments],
        cwd=folder or REPOSITORY,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": "", "HOME": "/nowhere"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_needs_no_ranks_and_no_data(tmp_path: Path) -> None:
    done = run_command("ranks=4", "memory=20MiB", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "on 4 ranks of 20MiB" in done.stdout
    rows = re.findall(r"^  \d+ x \d+ .* (?:ms|s)$", done.stdout, re.MULTILINE)
    assert len(rows) > 10
    assert "horovodrun -np 4 python -m trainer model.blocks=6" in done.stdout
    assert done.stdout.splitlines()[-1] == "loaded []"
    assert not list(tmp_path.iterdir())


def test_one_layout_is_shown_whole(tmp_path: Path) -> None:
    done = run_command("ranks=4", "layout.stages=2", "schedule=1f1b", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^  stage  ranks  layers +parameters +bytes +work +memory$", done.stdout, re.MULTILINE)
    assert re.search(r"^0 \|0 +1", done.stdout, re.MULTILINE)  # the schedule
    assert re.search(r"^  rank 1: .* for activations$", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ranks=4", "layout.stages=3"], "world size 4 is not divisible"),
        (["ranks=0"], "plan.ranks=0 must be greater than 0"),
        (["ranks=2", "model.widht=8"], "did you mean model.width?"),
    ],
)
def test_refusals_of_the_command(arguments: list[str], words: str, tmp_path: Path) -> None:
    done = run_command(*arguments, folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("trainer: error: ") == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_memory_that_is_too_small_is_refused() -> None:
    """With what each layout needs."""
    with pytest.raises(
        UserError, match=r"no layout fits; these .*\n  4 x 1, 1f1b: needs .* a rank"
    ) as caught:
        report(config(plan__ranks=4, plan__memory="50KiB"), ["plan.memory=50KiB"])
    assert "1 x 4, zb_v: needs" in str(caught.value)
