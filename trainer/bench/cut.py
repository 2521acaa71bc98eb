"""`python -m trainer.bench.cut JOB KIND`: what `model=hf` costs, and others' parallelism on the same model.

    layers        2 stages: against the same modules in a list of layers by hand, and the trainer's own GPT
    pipeline      2 stages: against torch.distributed.pipelining.pipeline()
    ddp           2 replicas: against plain transformers in torch's DistributedDataParallel
    accelerate    2 stages, inference: against accelerate's prepare_pippy (pip install accelerate)

All have the same sizes, batch, threads and optimizer, and take turns, as in `trainer.bench.peers`. The table
has each contestant's time over that of `model=hf`, and the same of processor time, which other load disturbs
less.
"""

import argparse
import json
import os
import socket
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainer.bench.contest import Entry, Pair, contest, take_turns
from trainer.bench.gpt import LEARNING_RATE, WEIGHT_DECAY, Work
from trainer.bench.hf_models import KINDS, write
from trainer.bench.ours import EVALUATE
from trainer.bench.processes import exit_on_sigterm
from trainer.bench.statistics import median_interval

OURS, BY_HAND, OWN = "model=hf", "the same in layers", "model=gpt"
JOBS = {
    "layers": Work(),
    "pipeline": Work(),
    "ddp": Work(stages=1, replicas=2, micro_batches=4),
    # Its padding spoils batches that have more samples than chunks, so the chunks are single samples.
    "accelerate": Work(micro_batch=1, micro_batches=16),
}


def main() -> None:
    """Run a contest; print the table, and save the raw times."""
    exit_on_sigterm()  # otherwise suspended contestants would stay forever
    given = _command_line()
    work = JOBS[given.job]
    with tempfile.TemporaryDirectory() as folder:
        write(given.kind, work, Path(folder))
        with contest(_entries(given.job, given.kind, work, folder)) as contestants:
            pairs = take_turns(contestants, given.rounds, given.steps)
    print(f"{given.job}, {given.kind}: {work.plain()}")
    print(table(pairs), flush=True)
    save = Path(f"runs/bench-cut-{given.job}-{given.kind}.json")
    save.parent.mkdir(parents=True, exist_ok=True)
    turns = {name: [asdict(pair) for pair in of_name] for name, of_name in pairs.items()}
    save.write_text(json.dumps({"work": work.plain(), "turns": turns}) + "\n")
    print(f"raw times: {save}")


def _command_line() -> Any:
    parser = argparse.ArgumentParser(prog="python -m trainer.bench.cut", description=__doc__)
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--rounds", type=int, default=30, help="turns of each contestant")
    parser.add_argument("--steps", type=int, default=2, help="steps per turn")
    return parser.parse_args()


def _entries(job: str, kind: str, work: Work, folder: str) -> list[Entry]:
    hf = ["model=hf", f"model.path={folder}", "model.load=config"]
    ours = _on_trainer(OURS, hf, work, evaluates=job == "accelerate")
    if job != "layers":
        return [ours, _on_torch(job, folder, work)]
    by_hand = [
        *("model=custom", "model.target=trainer.bench.hf_models:layers"),
        f"+model.options.path={folder}",
    ]
    sizes = [f"model.{name}={getattr(work, name)}" for name in ("blocks", "width", "heads", "context")]
    positions = "learned" if kind == "gpt2" else "rotary"
    tied = f"model.tied={str(kind == 'gpt2').lower()}"
    own = ["model=gpt", *sizes, "model.dropout=0.0", tied, f"model.positions={positions}"]
    return [ours, _on_trainer(BY_HAND, by_hand, work), _on_trainer(OWN, own, work)]


def _on_trainer(name: str, model: Sequence[str], work: Work, *, evaluates: bool = False) -> Entry:
    options = ", ".join(f"{key}: {value}" for key, value in work.plain().items())
    overrides = [
        *("experiment=none", *model),
        f"layout.stages={work.stages}",
        # Equal halves for all: the estimated costs differ by what the contest is about.
        *([f"layout.boundaries=[{1 + work.blocks // 2}]"] if work.stages > 1 else []),
        *("data=custom", "data.target=trainer.bench.gpt:random_tokens", f"+data.options={{{options}}}"),
        *(f"batch.global_size={work.samples}", f"batch.micro_size={work.micro_batch}"),
        *(f"optimizer.lr={LEARNING_RATE}", f"optimizer.weight_decay={WEIGHT_DECAY}", "optimizer.clip=null"),
        *("schedule=1f1b", "threads=1", "device=cpu", "train.steps=1"),
    ]
    command = ["horovodrun", "-np", str(work.ranks), sys.executable, "-m", "trainer.bench.ours", *overrides]
    return Entry(name, command, variables={EVALUATE: "1"} if evaluates else {})


def _on_torch(job: str, folder: str, work: Work) -> Entry:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    command = [sys.executable, "-m", "trainer.bench.hf_peers", job, folder, json.dumps(work.plain())]
    variables = {**address, "PYTHONPATH": os.environ.get("PYTHONPATH", str(Path.cwd()))}
    return Entry(job, command, copies=work.ranks, variables=variables, required=False)


def table(pairs: Mapping[str, Sequence[Pair]]) -> str:
    """Return the table, with a row for every contestant."""
    rows = [
        f"{'contestant':22}{'seconds':>9}{'CPU seconds':>13}  {'time / ours, 95 %':26}{'CPU time / ours'}"
    ]
    for name, of_name in pairs.items():
        seconds = statistics.median(pair.turn.seconds for pair in of_name)
        cpu = statistics.median(pair.turn.cpu_seconds for pair in of_name)
        ratio = median_interval([pair.turn.seconds / pair.reference.seconds for pair in of_name])
        of_cpu = median_interval([pair.turn.cpu_seconds / pair.reference.cpu_seconds for pair in of_name])
        rows.append(f"{name:22}{seconds:9.3f}{cpu:13.3f}  {ratio!s:26}{of_cpu}")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
