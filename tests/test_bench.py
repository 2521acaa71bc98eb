"""Benchmarks compare what they claim to compare."""

import sys
from pathlib import Path

import pytest
import torch

from tests.support.launch import REPOSITORY
from trainer.bench.contest import ContestError, Entry, Pair, Turn, contest, take_turns
from trainer.bench.gpt import Part, Work
from trainer.bench.overhead import Bench
from trainer.bench.peers import LIMIT, ONE, OURS, table
from trainer.bench.split_backward import SplitBench, orders
from trainer.bench.statistics import median_interval
from trainer.bench.torch_pipeline import SCHEDULES
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
    """The ranks that tables of the binomial test give (Conover, "Practical Nonparametric Statistics")."""
    interval = median_interval([float(value) for value in reversed(range(1, n + 1))])
    assert (interval.low, interval.high) == (k, n + 1 - k)
    assert interval.median == (n + 1) / 2


def test_few_values_give_their_range() -> None:
    assert str(median_interval([3.0, 1.0, 2.0])) == "2.000 (1.000 .. 3.000)"


def _entry(name: str, seconds: float, folder: Path) -> Entry:
    command = [sys.executable, "-c", _CONTESTANT, str(seconds), str(folder / name)]
    return Entry(name, command, variables={"PYTHONPATH": str(REPOSITORY)})


def test_contestants_take_turns(tmp_path: Path) -> None:
    """The first one is the reference: it has a turn before and behind every other's."""
    seconds = {"quick": 0.02, "slow": 0.2, "slower": 0.3}
    with contest([_entry(name, each, tmp_path) for name, each in seconds.items()]) as contestants:
        pairs = take_turns(contestants, rounds=2, steps=2)
    for name, each in seconds.items():
        assert len(pairs[name]) == 2
        assert all(pair.turn.seconds >= each > pair.turn.cpu_seconds for pair in pairs[name])
        assert all(each > pair.reference.seconds >= 0.02 for pair in pairs[name] if name != "quick")
        turns = 2 * 3 if name == "quick" else 2
        assert len((tmp_path / name).read_text().split()) == 3 + turns * 3  # the first steps, and warm-ups


def test_the_table_tells_ratios_of_pairs() -> None:
    """The machine became slower by a half, and then by as much again: no ratio knows."""
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
    assert "0.556 (0.556 .. 0.556) (medians of 1.800 s)" in cpu


def test_a_contestant_that_fails_is_told(tmp_path: Path) -> None:
    broken = Entry("broken", [sys.executable, "-c", "raise SystemExit('it is out of order')"])
    with pytest.raises(ContestError, match=r"broken ended(.|\n)*it is out of order"), contest([broken]):
        pass


def test_a_peer_that_cannot_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = Entry("broken", [sys.executable, "-c", "raise ValueError('no such schedule')"], required=False)
    with contest([broken, _entry("quick", 0.02, tmp_path)]) as contestants:
        assert [contestant.name for contestant in contestants] == ["quick"]
    assert "left out: broken ended" in capsys.readouterr().out


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
    bench, gradients = SplitBench(work), []
    for order in orders(work.micro_batches).values():
        bench.step(order)
        gradients.append([parameter.grad for parameter in bench.parameters()])
    assert len(gradients) == 3
    for others in gradients[1:]:
        assert all(torch.equal(one, other) for one, other in zip(gradients[0], others, strict=True))


@pytest.mark.parametrize("stages", [1, 2, 4])
def test_every_peer_has_the_full_model(stages: int) -> None:
    work = Work(stages=stages, blocks=3, width=32, heads=2, context=16)
    names = [layer.name for part in work.parts(stages) for layer in part]
    assert names == ["embedding", "block.0", "block.1", "block.2", "head"]
    inputs, targets = work.batch(0)
    assert len(inputs) == len(targets) == work.samples
    x = inputs
    for part in work.parts(stages):
        x = Part(part)(x)
    assert x.shape == (work.samples, 16, work.vocabulary)


def test_torchs_schedules_are_all_there() -> None:
    from torch.distributed.pipelining import schedules  # noqa: PLC0415

    theirs = [name for name in vars(schedules) if name.startswith("Schedule")]
    assert len(SCHEDULES) == len(theirs)
