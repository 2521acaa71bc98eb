"""`python -m trainer.bench.peers pipeline|data|hybrid`: the same GPT on this trainer and on its peers.

All have the same weight shapes, batch, threads and optimizer. They take turns in one run, ours before and
after every other contestant's. The table shows each contestant's time over ours: the median of the pairs and
its 95 % interval. The share of the limit is the time of our ranks doing the same actions with every receive
answered immediately, over a contestant's time.
"""

import argparse
import json
import socket
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainer.bench.contest import Entry, Pair, contest, take_turns
from trainer.bench.gpt import LEARNING_RATE, WEIGHT_DECAY, Work
from trainer.bench.ours import FREE
from trainer.bench.processes import exit_on_sigterm
from trainer.bench.statistics import median_interval
from trainer.bench.torch_pipeline import SCHEDULES
from trainer.bench.torch_pipeline import placement as torch_placement
from trainer.schedule.resolve import resolve

OURS, LIMIT, ONE, DEEPSPEED_NAME = "ours", "free-running", "one process", "DeepSpeed pipeline"
DEEPSPEED = Path(".venv-deepspeed/bin/python")
DEFAULTS = {
    "pipeline": Work(stages=2, replicas=1),
    "data": Work(stages=1, replicas=2, micro_batches=4),
    "hybrid": Work(stages=2, replicas=2, micro_batches=4),
}
_ALL = {"pipeline": SCHEDULES, "data": ("ddp",), "hybrid": SCHEDULES}


def main() -> None:
    """Run the contest; print the table, and save the raw times and the picture."""
    exit_on_sigterm()  # otherwise suspended contestants would stay forever
    given = _command_line()
    work = Work(**{name: getattr(given, name) for name in DEFAULTS["pipeline"].plain()})
    entries = [*_ours(work, given.schedule), *_torchs(work, given.torch), *_deepspeed(work)]
    print(f"{given.job}: {work.stages} stages x {work.replicas} replicas, {work.plain()}", flush=True)
    blocks = blocks_by_rank(work, given.schedule, [entry.name for entry in entries])
    print("\n".join(f"{name:22}blocks by rank: {held}" for name, held in blocks.items()), flush=True)
    with contest(entries) as contestants:
        pairs = take_turns(contestants, given.rounds, given.steps)
    print(table(pairs))
    given.save.parent.mkdir(parents=True, exist_ok=True)
    given.save.write_text(json.dumps(_raw(given, work, pairs) | {"blocks by rank": blocks}) + "\n")
    _draw(given.save.with_suffix(".png"), given.job, work, pairs)
    print(f"raw times: {given.save}, picture: {given.save.with_suffix('.png')}")


def _command_line() -> Any:
    parser = argparse.ArgumentParser(prog="python -m trainer.bench.peers", description=__doc__)
    parser.add_argument("job", choices=DEFAULTS)
    job = parser.parse_known_args()[0].job
    parser.add_argument("--rounds", type=int, default=15, help="turns of each contestant")
    parser.add_argument("--steps", type=int, default=2, help="steps per turn")
    parser.add_argument("--schedule", default="1f1b", help="our schedule")
    parser.add_argument("--torch", nargs="*", choices=_ALL[job], default=list(_ALL[job]), help="schedules")
    parser.add_argument("--save", type=Path, default=Path(f"runs/bench-{job}.json"), help="file of raw times")
    for name, value in DEFAULTS[job].plain().items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    return parser.parse_args()


def _ours(work: Work, schedule: str) -> list[Entry]:
    options = ", ".join(f"{name}: {value}" for name, value in work.plain().items())
    overrides = [
        f"layout.stages={work.stages}",
        f"schedule={schedule}",
        *(f"model.{name}={getattr(work, name)}" for name in ("blocks", "width", "heads", "context")),
        *("model.dropout=0.0", "model.tied=false"),
        *("data=custom", "data.target=trainer.bench.gpt:random_tokens", f"+data.options={{{options}}}"),
        *(f"batch.global_size={work.samples}", f"batch.micro_size={work.micro_batch}"),
        *(f"optimizer.lr={LEARNING_RATE}", f"optimizer.weight_decay={WEIGHT_DECAY}", "optimizer.clip=null"),
        *("threads=1", "device=cpu", "train.steps=1"),
    ]
    program = [sys.executable, "-m", "trainer.bench.ours"]
    launcher = ["horovodrun", "-np", str(work.ranks)]
    alone = [*overrides, "layout.stages=1"]
    return [
        Entry(OURS, [*launcher, *program, *overrides]),
        Entry(LIMIT, [*launcher, *program, *overrides], variables={FREE: "1"}),
        Entry(ONE, [*program, *alone]),
    ]


def blocks_by_rank(work: Work, schedule: str, names: Sequence[str]) -> dict[str, str]:
    """Return the number of blocks on each rank of a replica, for every contestant but `ONE`.

    Args:
        work: The work of the contest.
        schedule: Our schedule.
        names: The contestants.
    """
    p = work.stages
    ours = resolve(schedule).placement(p)
    placements = {OURS: ours, LIMIT: ours, DEEPSPEED_NAME: tuple(range(p)), _torch_name("ddp"): (0,)}
    placements |= {_torch_name(name): tuple(torch_placement(name, p)) for name in SCHEDULES}
    taking_part = {name: placements[name] for name in names if name != ONE}
    held = {placed: work.blocks_by_rank(placed) for placed in set(taking_part.values())}
    return {name: " + ".join(map(str, held[placed])) for name, placed in taking_part.items()}


def _torch_name(schedule: str) -> str:
    return f"torch {schedule}"


def _torchs(work: Work, names: Sequence[str]) -> list[Entry]:
    return [
        _on_torch(_torch_name(name), [sys.executable, "-m", "trainer.bench.torch_pipeline", name], work)
        for name in names
    ]


def _deepspeed(work: Work) -> list[Entry]:
    """Return DeepSpeed's pipeline, if `make setup-deepspeed` has been run."""
    if not DEEPSPEED.exists() or work.stages == 1:
        return []
    variables = {"DS_ACCELERATOR": "cpu", "PYTHONPATH": str(Path.cwd())}
    module = [str(DEEPSPEED), "-m", "trainer.bench.deepspeed_pipeline"]
    return [_on_torch(DEEPSPEED_NAME, module, work, variables)]


def _on_torch(
    name: str, program: Sequence[str], work: Work, variables: dict[str, str] | None = None
) -> Entry:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    command = [*program, json.dumps(work.plain())]
    return Entry(name, command, copies=work.ranks, variables=address | (variables or {}), required=False)


def table(pairs: Mapping[str, Sequence[Pair]]) -> str:
    """Return the table, with a row for every contestant."""
    rows = [
        f"{'contestant':22}{'seconds':>9}{'CPU seconds':>13}  {'time / ours, 95 %':26}{'share of the limit'}"
    ]
    limit = _over_ours(pairs[LIMIT])
    for name, of_name in pairs.items():
        seconds = statistics.median(pair.turn.seconds for pair in of_name)
        cpu = statistics.median(pair.turn.cpu_seconds for pair in of_name)
        over_ours = _over_ours(of_name)
        shares = [best / theirs for best, theirs in zip(limit, over_ours, strict=True)]
        share = "" if name in (LIMIT, ONE) else str(median_interval(shares))
        rows.append(f"{name:22}{seconds:9.3f}{cpu:13.3f}  {median_interval(over_ours)!s:26}{share:26}")
    cpu_of_one = statistics.median(pair.turn.cpu_seconds for pair in pairs[ONE])
    ratio = median_interval([pair.reference.cpu_seconds / pair.turn.cpu_seconds for pair in pairs[ONE]])
    rows.append(f"our CPU seconds over those of one process: {ratio} (its median: {cpu_of_one:.3f} s)")
    return "\n".join(rows)


def _over_ours(pairs: Sequence[Pair]) -> list[float]:
    """Return the ratio of a contestant's time to ours, by round."""
    return [pair.turn.seconds / pair.reference.seconds for pair in pairs]


def _raw(given: Any, work: Work, pairs: Mapping[str, Sequence[Pair]]) -> dict[str, Any]:
    return {
        "job": given.job,
        "work": work.plain(),
        "schedule": given.schedule,
        "steps of a turn": given.steps,
        "turns": {name: [asdict(pair) for pair in of_name] for name, of_name in pairs.items()},
    }


def _draw(path: Path, job: str, work: Work, pairs: Mapping[str, Sequence[Pair]]) -> None:
    """Draw every contestant's ratio with its interval."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    names = [name for name in pairs if name not in (OURS, ONE)]
    figure = Figure(figsize=(8, 1.6 + 0.4 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for row, name in enumerate(names):
        over_ours = _over_ours(pairs[name])
        each = median_interval(over_ours)
        axes.plot(over_ours, [row] * len(over_ours), "|", color="#9aa3ab")
        colour = "#159d73" if name == LIMIT else "#2a6eb5"
        axes.plot([each.low, each.high], [row, row], linewidth=5, color=colour, alpha=0.5)
        axes.plot(each.median, row, "o", color=colour)
        axes.annotate(
            f"{each.median:.3f}", (each.median, row), (0, 9), textcoords="offset points", ha="center"
        )
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_ylim(len(names) - 0.5, -0.8)
    axes.set_xlabel(
        "time of a step over ours; right of 1 is slower (points: medians; bars: 95 %; ticks: rounds)"
    )
    axes.set_title(
        f"{job}: GPT of {work.blocks} blocks, width {work.width}, {work.stages} stages x {work.replicas} "
        f"replicas, {work.micro_batches} micro-batches each",
        fontsize=10,
    )
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
