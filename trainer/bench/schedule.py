"""`python -m trainer.bench.schedule`: real schedules on sleeping layers, ours and torch's alternately.

The idle share of a step is compared with its closed form (`ScheduleRecipe.idle`) for p workers and m >= p
micro-batches, where a forward and both parts of a backward take equal time, the same in every stage,
however many stages a worker holds. The time of a step is compared with two simulations of the same schedule:
with layers that take exactly as long as they sleep, and messages that take no time (`simulated`); and on the
machine as each run observed it (`forecast`).
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from operator import attrgetter
from pathlib import Path

from trainer.bench import processes
from trainer.bench.sleeping import Sleep
from trainer.schedule.assemble import training_schedule
from trainer.schedule.recipe import ScheduleRecipe
from trainer.schedule.resolve import recipes, resolve
from trainer.schedule.simulate import simulate

TRANSPORTS: dict[str, dict[str, str]] = {
    "auto": {},
    "copy": {"OMPI_MCA_btl": "self,vader", "OMPI_MCA_btl_vader_single_copy_mechanism": "none"},
    "tcp": {"OMPI_MCA_btl": "self,tcp"},
}
_COLUMNS = {  # and their widths
    "p": 3,
    "m": 4,
    "schedule": 13,
    "closed form": 12,
    "simulated": 10,
    "idle": 7,
    "step/simulated": 15,
    "step/forecast": 14,
    "torch idle": 11,
    "torch/ours": 11,
}
Case = tuple[str, int]  # schedule, micro-batches


@dataclass
class Measured:
    """Times of all launches of one case.

    Attributes:
        seconds: The time of every counted step.
        over_forecast: For each of our launches, its median step over its own forecast.
    """

    seconds: list[float] = field(default_factory=list)
    over_forecast: list[float] = field(default_factory=list)

    def add(self, other: "Measured") -> None:
        """Add another launch."""
        self.seconds += other.seconds
        self.over_forecast += other.over_forecast


Cases = dict[Case, Measured]


def main() -> None:
    """Measure, print the table and save the raw times."""
    parser = argparse.ArgumentParser(prog="python -m trainer.bench.schedule", description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[4, 8, 16], help="numbers of ranks")
    parser.add_argument("--factors", type=int, nargs="+", default=[1, 2, 4], help="micro-batches per rank")
    parser.add_argument("--rounds", type=int, default=2, help="launches of each trainer, alternately")
    parser.add_argument("--steps", type=int, default=5, help="counted steps per launch")
    parser.add_argument(
        "--milliseconds",
        type=float,
        default=20.0,
        help="of each forward and each part of a backward",
    )
    parser.add_argument("--floats", type=int, default=256, help="numbers per message, of 4 bytes each")
    parser.add_argument("--transport", choices=TRANSPORTS, default="auto", help="transport of our messages")
    parser.add_argument(
        "--save", type=Path, default=Path("runs/bench-schedule.json"), help="file of raw times"
    )
    given = parser.parse_args()
    processes.exit_on_sigterm()
    os.environ |= TRANSPORTS[given.transport]
    raw = []
    print(_row(*_COLUMNS))
    for ranks in given.ranks:
        counts = [factor * ranks for factor in given.factors]
        launches = Launches(ranks, counts, given.steps, given.floats, given.milliseconds / 1000)
        ours, torchs = _measure(launches, given.rounds)
        for case in ours:
            print(_report(launches, case, ours[case], torchs.get(case)), flush=True)
            peers = asdict(torchs[case]) if case in torchs else None
            raw.append({"ranks": ranks, "case": case, "ours": asdict(ours[case]), "torch": peers})
    given.save.parent.mkdir(parents=True, exist_ok=True)
    settings = {name: vars(given)[name] for name in ("floats", "transport", "milliseconds")}
    given.save.write_text(json.dumps(settings | {"times": raw}) + "\n")
    print(f"raw times: {given.save}")


def _measure(launches: "Launches", rounds: int) -> tuple[Cases, Cases]:
    ours: Cases = defaultdict(Measured)
    torchs: Cases = defaultdict(Measured)
    for _ in range(rounds):
        for cases, found in ((ours, launches.ours()), (torchs, launches.torchs())):
            for case, measured in found.items():
                cases[case].add(measured)
    return ours, torchs


@dataclass(frozen=True)
class Launches:
    """Launches of ranks that run every schedule.

    Attributes:
        ranks: The number of ranks.
        counts: The numbers of micro-batches.
        steps: Counted steps, after one that warms up.
        floats: Numbers per message, of 4 bytes each.
        seconds: How long a stage sleeps for each forward, input gradient and weight gradient.
    """

    ranks: int
    counts: Sequence[int]
    steps: int
    floats: int
    seconds: float

    def ours(self) -> Cases:
        """Time our schedules, in one launch for each number of stages per worker."""
        cases: Cases = {}
        by_stages = groupby(recipes().values(), key=attrgetter("stages_per_worker"))  # sorted by it
        for stages_per_worker, group in by_stages:
            cases |= self._ours(list(group), stages_per_worker)
        return cases

    def _ours(self, alike: Sequence[ScheduleRecipe], stages_per_worker: int) -> Cases:
        names = [recipe.name for recipe in alike]
        cases = [(name, count) for name in names for count in self.counts]
        model = {"layers": stages_per_worker * self.ranks} | vars(self._sleep)
        options = ", ".join(f"{key}: {value}" for key, value in model.items())
        with tempfile.TemporaryDirectory() as folder:
            program = [sys.executable, "-m", "trainer", "-m", f"run.dir={folder}"]
            program += [f"layout.stages={self.ranks}", f"schedule={','.join(names)}"]
            program += [f"batch.global_size={','.join(map(str, self.counts))}", "batch.micro_size=1"]
            program += ["experiment=none", "model=custom", "model.target=trainer.bench.sleeping:model"]
            program += [f"+model.options={{{options}}}"]
            program += ["data=custom", "data.target=trainer.bench.sleeping:data"]
            program += [f"+data.options={{floats: {self.floats}}}", f"train.steps={self.steps + 1}"]
            program += ["optimizer=sgd", "threads=1", "eval.samples=1", "progress=off", "device=cpu"]
            _run(["horovodrun", "-np", str(self.ranks), *program])
            return {case: _read(Path(folder) / str(i)) for i, case in enumerate(cases)}

    def torchs(self) -> Cases:
        """Time torch's schedules; it lacks some of ours."""
        given = {"micro_batches": self.counts, "steps": self.steps, "floats": self.floats}
        given |= {"sleep": vars(self._sleep)}
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        launcher += ["--nproc-per-node", str(self.ranks)]
        out = _run([*launcher, "-m", "trainer.bench.torch_schedule", json.dumps(given)])
        found = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        for each in found:
            for slept in each["slept"]:
                assert set(slept.values()) == {each["micro_batches"]}, (
                    f"not one sleep per micro-batch: {each}"
                )
        return {(each["schedule"], each["micro_batches"]): Measured(each["seconds"]) for each in found}

    @property
    def _sleep(self) -> Sleep:
        return Sleep(self.seconds, self.seconds, self.seconds)


def _read(run: Path) -> Measured:
    entries = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    seconds = [entry["step_seconds"] for entry in entries if "loss" in entry][1:]
    forecast = json.loads((run / "timeline.json").read_text())["predicted_seconds"]
    return Measured(seconds, [statistics.median(seconds) / forecast])


def _run(command: Sequence[str]) -> str:
    """Run a command to its end and return its output."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"}
    code, out, err = processes.run(command, environment)
    if code:
        raise SystemExit(f"{' '.join(command)} exited with {code}:\n{out}{err}")
    return out


def _report(launches: Launches, case: Case, ours: Measured, torchs: Measured | None) -> str:
    """Return a row of the table; `torchs` is None if torch lacks the schedule."""
    name, count = case
    recipe = resolve(name)
    schedule = training_schedule(recipe, launches.ranks, count)
    closed_form = recipe.idle_share(launches.ranks, count)
    busy = 3 * launches.seconds * count * recipe.stages_per_worker
    stages = [launches.seconds] * schedule.stages
    simulated = simulate(schedule, stages, [2 * seconds for seconds in stages]).makespan
    mine = statistics.median(ours.seconds)
    theirs = statistics.median(torchs.seconds) if torchs else None
    return _row(
        launches.ranks,
        count,
        name,
        "-" if closed_form is None else f"{closed_form:.3f}",
        f"{1 - busy / simulated:.3f}",
        f"{1 - busy / mine:.3f}",
        f"{mine / simulated:.3f}",
        f"{statistics.median(ours.over_forecast):.3f}",
        f"{1 - busy / theirs:.3f}" if theirs else "-",
        f"{theirs / mine:.3f}" if theirs else "-",
    )


def _row(*cells: object) -> str:
    return "".join(str(cell).rjust(width) for cell, width in zip(cells, _COLUMNS.values(), strict=True))


if __name__ == "__main__":
    main()
