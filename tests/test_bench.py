"""Benchmarks compare what they claim to compare."""

import signal
import sys
from collections.abc import Sequence
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.launch import REPOSITORY, Launch
from trainer.bench.contest import ContestError, Entry, Pair, Turn, contest, take_turns
from trainer.bench.gpt import BLOCK, Part, Work
from trainer.bench.lone_stage import LoneStage
from trainer.bench.overhead import Bench
from trainer.bench.peers import DEEPSPEED_NAME, LIMIT, ONE, OURS, blocks_by_rank, table
from trainer.bench.processes import run
from trainer.bench.split_backward import orders, step
from trainer.bench.statistics import median_interval
from trainer.bench.torch_pipeline import SCHEDULES, placement
from trainer.plan.costs import layer_costs
from trainer.schedule.resolve import resolve

_CONTESTANT = """
import sys, time
from trainer.bench.contestant import serve
def step():
    open(sys.argv[2], "a").write("step ")
    time.sleep(float(sys.argv[1]))
serve(0, lambda value: [value], step)
"""


@pytest.mark.parametrize(("n", "k"), [(6, 1), (8, 1), (9, 2), (15, 4), (20, 6), (30, 10)])
def test_interval_of_a_median(n: int, k: int) -> None:
    """The order statistics of binomial-test tables (Conover, "Practical Nonparametric Statistics")."""
    interval = median_interval([float(value) for value in reversed(range(1, n + 1))])
    assert (interval.low, interval.high) == (k, n + 1 - k)
    assert interval.median == (n + 1) / 2


def test_few_values_give_their_range() -> None:
    assert str(median_interval([3.0, 1.0, 2.0])) == "2.000 (1.000 .. 3.000)"


def _entry(name: str, seconds: float, folder: Path) -> Entry:
    command = [sys.executable, "-c", _CONTESTANT, str(seconds), str(folder / name)]
    return Entry(name, command, variables={"PYTHONPATH": str(REPOSITORY)})


@pytest.mark.slow
def test_contestants_take_turns(tmp_path: Path) -> None:
    """The first one is the reference: it takes a turn before and after every other's."""
    seconds = {"quick": 0.02, "slow": 0.2, "slower": 0.3}
    with contest([_entry(name, each, tmp_path) for name, each in seconds.items()]) as contestants:
        pairs = take_turns(contestants, rounds=2, steps=2)
    for name, each in seconds.items():
        assert len(pairs[name]) == 2
        assert all(pair.turn.seconds >= each > pair.turn.cpu_seconds for pair in pairs[name])
        assert all(each > pair.reference.seconds >= 0.02 for pair in pairs[name] if name != "quick")
        turns = 2 * 3 if name == "quick" else 2
        assert len((tmp_path / name).read_text().split()) == 3 + turns * 3  # the first steps, and warm-ups


def test_the_table_shows_ratios_of_pairs() -> None:
    """The machine slows to 2/3 and then to half its speed; no ratio changes."""
    seconds = {OURS: 1.0, LIMIT: 0.9, ONE: 1.8, "theirs": 1.2}
    pairs = {
        name: [Pair(Turn(slow * each, each), Turn(slow, 1.0)) for slow in (1.0, 1.5, 2.0)]
        for name, each in seconds.items()
    }
    _, ours, limit, one, theirs, cpu = table(pairs).splitlines()
    assert ours.split()[1:4] == ["1.500", "1.000", "1.000"]
    assert ours.endswith("0.900 (0.900 .. 0.900)    ")
    assert theirs.split()[1:3] == ["1.800", "1.200"]
    assert theirs.endswith("1.200 (1.200 .. 1.200)    0.750 (0.750 .. 0.750)    ")
    assert "0.900 (0.900 .. 0.900)" in limit
    assert "1.800 (1.800 .. 1.800)" in one
    assert "0.556 (0.556 .. 0.556) (its median: 1.800 s)" in cpu


def test_a_failing_contestant_is_reported(tmp_path: Path) -> None:
    broken = Entry("broken", [sys.executable, "-c", "raise SystemExit('it is out of order')"])
    with pytest.raises(ContestError, match=r"broken exited(.|\n)*it is out of order"), contest([broken]):
        pass


def test_a_failing_peer_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = Entry("broken", [sys.executable, "-c", "raise ValueError('no such schedule')"], required=False)
    with contest([broken, _entry("quick", 0.02, tmp_path)]) as contestants:
        assert [contestant.name for contestant in contestants] == ["quick"]
    assert "left out: broken exited" in capsys.readouterr().out


def test_the_bare_loop_computes_what_the_engine_computes() -> None:
    bench = Bench(resolve("1f1b"), stages=3, micro_batches=4)
    gradients = []
    for way in (bench.step, bench.bare):
        for weight in bench.weights():
            weight.grad = None
        way()
        gradients.append([weight.grad for weight in bench.weights()])
    assert all(gradient is not None and gradient.abs() > 0 for gradient in gradients[0])
    assert torch.equal(torch.stack(gradients[0]), torch.stack(gradients[1]))


def test_split_backwards_do_the_work_of_full_ones() -> None:
    work = Work(blocks=2, width=16, heads=2, context=8, micro_batches=3)
    stage, gradients = LoneStage(work), []
    for order in orders(work.micro_batches).values():
        step(stage, order)
        gradients.append([parameter.grad for parameter in stage.parameters()])
    assert len(gradients) == 3
    for others in gradients[1:]:
        assert all(torch.equal(one, other) for one, other in zip(gradients[0], others, strict=True))


@pytest.mark.parametrize("stages", [1, 2, 4])
def test_every_peer_has_the_full_model(stages: int) -> None:
    work = Work(stages=stages, blocks=3, width=32, heads=2, context=16)
    names = [layer.name for part in work.parts(range(stages)) for layer in part]
    assert names == ["embedding", "block.0", "block.1", "block.2", "head"]
    inputs, targets = work.batch(0)
    assert len(inputs) == len(targets) == work.samples
    x = inputs
    for part in work.parts(range(stages)):
        x = Part(part)(x)
    assert x.shape == (work.samples, 16, work.vocabulary)


PEERS = (OURS, LIMIT, DEEPSPEED_NAME, *(f"torch {name}" for name in SCHEDULES))


@pytest.mark.parametrize(("blocks", "alike"), [(5, {2, 3}), (6, {3}), (7, {3, 4}), (8, {4})])
def test_all_contestants_put_the_same_numbers_of_blocks_on_ranks(blocks: int, alike: set[int]) -> None:
    """The fuller rank holds as many blocks for every contestant: 3 + 3 for all, not 2 + 4 for one."""
    for ours in ("1f1b", "interleaved", "zb_v"):
        held = blocks_by_rank(Work(blocks=blocks), ours, [*PEERS, ONE])
        assert list(held) == list(PEERS)
        assert [{*map(int, each.split(" + "))} for each in held.values()] == [alike] * len(PEERS), held


@pytest.mark.parametrize("width", [64, 320])
@pytest.mark.parametrize("blocks", [5, 6, 7, 8])
@pytest.mark.parametrize("name", ["1f1b", "interleaved", "zb_v"])
def test_no_partition_suits_a_peer_better(name: str, blocks: int, width: int) -> None:
    """No other partition into the peer's stages has a faster slowest rank."""
    work, placed = Work(blocks=blocks, width=width), placement(name, 2)
    costs = [each.cost for each in layer_costs(work.model(), work.data().training.inputs(np.arange(2)))]
    ends = np.cumsum([len(part) for part in work.parts(placed)]).tolist()

    def slowest(cut: Sequence[int]) -> float:
        of_rank = [0.0, 0.0]
        for rank, (first, end) in zip(placed, pairwise((0, *cut, len(costs))), strict=True):
            of_rank[rank] += sum(costs[first:end])
        return max(of_rank)

    best = min(map(slowest, combinations(range(1, len(costs)), len(placed) - 1)))
    assert slowest(ends[:-1]) == pytest.approx(best, rel=1e-12)


def test_a_replica_of_one_stage_holds_all_blocks() -> None:
    work = Work(stages=1, replicas=2, blocks=3, width=32, heads=2, context=16)
    assert blocks_by_rank(work, "1f1b", [OURS, ONE, "torch ddp"]) == {OURS: "3", "torch ddp": "3"}
    assert sum(layer.name.startswith(BLOCK) for part in work.parts([0]) for layer in part) == 3


_TERMINATED = """
import subprocess, sys
from trainer.bench import processes
processes.exit_on_sigterm()
rank = "import time, pathlib; pathlib.Path('started').touch(); time.sleep(600)"
launcher = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {rank!r}])"
processes.run([sys.executable, "-c", launcher])
"""


def test_a_terminated_bench_stops_its_ranks(tmp_path: Path) -> None:
    launch = Launch([sys.executable, "-c", _TERMINATED], tmp_path)
    launch.wait_for_file(tmp_path / "started")
    launch.signal_launcher(signal.SIGTERM)
    result = launch.wait()
    assert result.code == 128 + signal.SIGTERM
    assert not result.left_over


def test_a_command_runs_to_its_end() -> None:
    code = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    assert run([sys.executable, "-c", code]) == (3, "out\n", "err\n")


def test_all_of_torchs_schedules_take_part() -> None:
    from torch.distributed.pipelining import schedules  # noqa: PLC0415

    theirs = [name for name in vars(schedules) if name.startswith("Schedule")]
    assert len(SCHEDULES) == len(theirs)
