"""`python -m trainer.bench.model_memory hf|module`: each rank's peak memory on 4 stages, over that of 1.

A model of eight equal blocks is built, loaded, trained for two steps with AdamW, and saved. A rank's memory
is its resident set, less what it had after importing everything and starting MPI; its peak is the kernel's
own, which is reset between the phases. What counts is the largest peak of any rank, in each phase and in all.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from trainer.command import run_command
from trainer.config.schema import Config

if TYPE_CHECKING:
    from trainer.distributed.world import World

_BLOCKS = 8
_CONTEXT = 16
_VOCABULARY = 256
_FOLDER = "TRAINER_BENCH_FOLDER"
_RESULT = "peaks "
_RESET_PEAK = "5"  # see proc(5), clear_refs


class Network(nn.Module):
    """Eight equal blocks, each an expansion and a contraction, between an embedding and a head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(_VOCABULARY, width)
        self.blocks = nn.ModuleList([_Block(width) for _ in range(_BLOCKS)])
        self.head = nn.Linear(width, _VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits [batch, time, vocabulary]."""
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(x)
        return logits


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.widen = nn.Linear(width, 6 * width)
        self.narrow = nn.Linear(6 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = x + self.narrow(nn.functional.gelu(self.widen(x)))
        return output


def main() -> None:
    """Measure 1 and 4 ranks, and print the table; as a rank of such a launch, train."""
    if _FOLDER in os.environ:
        run_command(_measure)
        return
    parser = argparse.ArgumentParser(prog="python -m trainer.bench.model_memory", description=__doc__)
    parser.add_argument("kind", choices=("hf", "module"))
    parser.add_argument(
        "--width", type=int, default=1024, help="of a block, which has 12 x its square weights"
    )
    given = parser.parse_args()
    kind = given.kind
    with tempfile.TemporaryDirectory() as folder:
        model = _write(Path(folder), given.width) if kind == "hf" else _network(given.width)
        peaks = {stages: _launch(model, stages, Path(folder)) for stages in (1, 4)}
        export = _exported(Path(folder)) if kind == "hf" else None
    print(f"{kind}: the largest peak of any rank, MiB over its size before the model")
    for phase in peaks[1][0]:
        one, four = (max(rank[phase] for rank in peaks[stages]) for stages in (1, 4))
        print(f"{phase:16}1 stage {one:8.0f}   4 stages {four:8.0f}   ratio {four / one:.3f}")
    print(f"by rank: {json.dumps(peaks[4])}")
    if export is not None:
        print(f"export, a process of its own: {export:.0f} MiB in all")


def _network(width: int) -> list[str]:
    """Return the overrides that train `Network`."""
    target = "model.target=trainer.bench.model_memory:Network"
    return ["model=module", target, f"+model.options.width={width}", "model.blocks=[blocks]"]


def _write(folder: Path, width: int) -> list[str]:
    """Write a Llama into a folder; return the overrides that train it."""
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415

    config = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=width,
        intermediate_size=8 * width // 3,
        num_hidden_layers=_BLOCKS,
        num_attention_heads=16,
        num_key_value_heads=16,
        max_position_embeddings=_CONTEXT,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model", max_shard_size="100MB")
    return ["model=hf", f"model.path={folder / 'model'}"]


def _launch(model: list[str], stages: int, folder: Path) -> list[dict[str, float]]:
    """Train on some ranks; return the peaks of each, in MiB by phase."""
    overrides = [
        *("experiment=none", *model, f"layout.stages={stages}", f"run.dir={folder / f'run{stages}'}"),
        *("data=custom", "data.target=trainer.bench.gpt:random_tokens"),
        f"+data.options={{vocabulary: {_VOCABULARY}, context: {_CONTEXT}, micro_batches: 4, micro_batch: 1}}",
        *("batch.global_size=4", "batch.micro_size=1", "train.steps=2", "optimizer.lr=1e-5", "threads=1"),
        *("device=cpu", "schedule=1f1b", "checkpoint.every=0", "eval.every=0"),
    ]
    command = ["horovodrun", "-np", str(stages), sys.executable, "-m", __spec__.name, *overrides]
    done = subprocess.run(
        command, env=os.environ | {_FOLDER: str(folder)}, capture_output=True, text=True, check=False
    )
    found = [line.partition(_RESULT)[2] for line in done.stdout.splitlines() if _RESULT in line]
    if done.returncode or not found:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-3000:]}")
    peaks: list[dict[str, float]] = json.loads(found[-1])
    return peaks


def _measure(config: Config, world: "World") -> None:
    """Train as a rank, and report the peaks of all on rank 0."""
    from trainer.metrics.folder import RunFolder  # noqa: PLC0415  (after the configuration has been checked)
    from trainer.resume import save  # noqa: PLC0415
    from trainer.run import Run  # noqa: PLC0415
    from trainer.step import TrainStep  # noqa: PLC0415

    if config.model.name == "hf":
        import transformers.models.llama.modeling_llama  # noqa: F401, PLC0415

        import trainer.hf.weights  # noqa: F401, PLC0415

    baseline, peaks = _status("VmRSS"), {}
    _reset_peak()
    run = Run(config, world)
    peaks["build and load"] = _peak(baseline)
    step = TrainStep(run, 2)
    for number in (1, 2):
        step.run(number, (number - 1) * config.batch.global_size)
    peaks["train"] = _peak(baseline)
    save(run, RunFolder(config, world), 2, 2 * config.batch.global_size)
    peaks["save"] = _peak(baseline)
    everyone = world.all_gather_objects(peaks | {"all": max(peaks.values())})
    if world.rank == 0:
        print(f"{_RESULT}{json.dumps(everyone)}", flush=True)
    world.barrier()


def _status(name: str) -> float:
    """Return an entry of this process's status in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


def _peak(baseline: float) -> float:
    """Return the peak since the last call, over the baseline; then start anew."""
    peak = _status("VmHWM") - baseline
    _reset_peak()
    return peak


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text(_RESET_PEAK)


def _exported(folder: Path) -> float:
    """Export the checkpoint of the launch on 4 ranks; return the peak of that process in MiB."""
    script = (
        "import resource, sys; from trainer.export.__main__ import main; code = main(sys.argv[1:]);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024); sys.exit(code)"
    )
    command = [sys.executable, "-c", script, str(folder / "run4"), str(folder / "exported")]
    done: Any = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


if __name__ == "__main__":
    main()
