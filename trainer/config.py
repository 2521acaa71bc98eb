"""The configuration: one typed dataclass per part, each field with its unit; `conf/` gives the values.

Hydra composes the files in `conf/` and the command line into `Config`. `check` then holds every value
against its range, before torch or MPI are even imported. Every error names the dotted key.
"""

from dataclasses import dataclass, field, is_dataclass
from typing import Any

from omegaconf import MISSING


@dataclass
class LayoutConfig:
    """How the ranks share the model."""

    stages: Any = "auto"  # "auto" or a number of workers that hold one model; replicas follow from the world
    virtual_stages: int | None = None  # stages a worker holds, where the schedule interleaves; None: its own
    devices_per_rank: int = 1  # devices that one rank drives, each with a stage of its own
    boundaries: list[int] | None = None  # first layer of each stage but the first; None: the best cut


@dataclass
class ModelConfig:
    """What every model has."""

    name: str = MISSING


@dataclass
class GPTConfig(ModelConfig):
    """A decoder-only transformer; its layers are the embedding, the blocks and the head."""

    name: str = "gpt"
    blocks: int = 8
    width: int = 128
    heads: int = 4
    context: int = 128  # tokens a sample
    dropout: float = 0.1
    positions: str = "learned"  # learned | rotary
    tied: bool = True  # the head uses the embedding's weight


@dataclass
class SimpleNetConfig(ModelConfig):
    """Linear, ReLU, Linear: the example that tutorials of model parallelism start from."""

    name: str = "simplenet"
    features: int = 10
    hidden: int = 20


@dataclass
class CustomConfig:
    """Something of the user's own, by import path."""

    name: str = "custom"
    target: str = MISSING  # package.module:callable
    options: dict[str, Any] = field(default_factory=dict)  # its keyword arguments


@dataclass
class CustomModelConfig(CustomConfig, ModelConfig):
    """A model of the user's own: `target(data, **options)` returns a `trainer.models.model.Model`."""


@dataclass
class DataConfig:
    """What every kind of data has."""

    name: str = MISSING


@dataclass
class TextConfig(DataConfig):
    """Text as tokens, cut into samples of `context` tokens."""

    name: str = "text"
    path: str | None = None  # a file or a folder; None: the Python standard library's own source
    pattern: str = "*"  # which files of a folder
    tokenizer: str = "bytes"  # "bytes", or the path of a file of the tokenizers library
    context: int = 128  # tokens a sample
    validation: float = 0.05  # share of the text, its end, that is held out
    cache: str = MISSING  # folder of the token files, made once a node


@dataclass
class BinaryConfig(DataConfig):
    """Random features with a label of 0 or 1 that a linear rule gives them."""

    name: str = "binary"
    samples: int = 1000
    features: int = 10
    validation: int = 200  # further samples, held out
    seed: int = 0


@dataclass
class CustomDataConfig(CustomConfig, DataConfig):
    """Data of the user's own: `target(**options)` returns a `trainer.data.dataset.Data`."""


@dataclass
class RateConfig:
    """The learning rate over the steps."""

    name: str = "constant"  # constant | cosine | linear
    warmup: int = 0  # steps of linear growth from 0
    final: float = 0.0  # the share of the peak that a decay ends at


@dataclass
class GroupConfig:
    """Parameters that the optimizer treats in a way of their own."""

    match: str = MISSING  # their pattern, as in train.freeze
    lr: float | None = None  # the peak; None: the optimizer's
    weight_decay: float | None = None  # applied to biases too; None: the optimizer's


@dataclass
class OptimizerConfig:
    """What every optimizer has."""

    name: str = MISSING
    lr: float = MISSING
    weight_decay: float = 0.0  # not applied to biases and normalisation weights
    clip: float | None = None  # largest global gradient norm; None: no clipping
    rate: RateConfig = field(default_factory=RateConfig)
    groups: list[Any] = field(default_factory=list)  # of GroupConfig; the first that matches wins
    sharded: bool = False  # divide its state among the replicas; the results are the same


@dataclass
class SGDConfig(OptimizerConfig):
    """Stochastic gradient descent."""

    name: str = "sgd"
    lr: float = 0.01
    momentum: float = 0.0
    nesterov: bool = False


@dataclass
class AdamWConfig(OptimizerConfig):
    """Adam with decoupled weight decay."""

    name: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.1
    clip: float | None = 1.0
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8


@dataclass
class CustomOptimizerConfig(CustomConfig, OptimizerConfig):
    """An optimizer of the user's own: `target(parameter_groups, lr=..., **options)`, a torch Optimizer.

    Where it is sharded, it sees on each replica the parameters of one shard alone: what it computes from
    several parameters together, such as a norm of them all, then hangs on the number of replicas.
    """


@dataclass
class BatchConfig:
    """Batch sizes, in samples; neither depends on the layout."""

    global_size: int = 64  # one optimizer step, over all replicas
    micro_size: int = 4  # one forward pass


@dataclass
class AveragingConfig:
    """How gradients of equal stages are averaged across the replicas."""

    op: str = "average"  # average | adasum
    compression: str = "none"  # none | fp16


@dataclass
class MemoryConfig:
    """What backwards compute again rather than keep."""

    recompute: str = (
        "none"  # none | selective (all but products and attention) | full (all but a layer's inputs)
    )
    limit: Any = None  # bytes that a rank may hold, or "12GiB": recomputes as little as that takes


@dataclass
class TrainConfig:
    """How long, and from which seed."""

    steps: int | None = None  # optimizer steps; None: `epochs` decides
    epochs: float | None = None  # passes over the training samples
    seed: int = 0
    deterministic: bool = False
    freeze: list[str] = field(default_factory=list)  # what keeps its weights: "block.*", "*/*.bias"


@dataclass
class EvalConfig:
    """Validation."""

    every: int = 0  # steps; 0: only at the end
    samples: int = 256  # validation samples each time; 0: all of them


@dataclass
class GenerateConfig:
    """The text that a language model writes at the end of a run."""

    tokens: int = 0  # how many; 0: none
    prompt: str = "def "
    temperature: float = 0.8  # 0: always the likeliest token
    top_k: int = 40  # sample among this many; 0: all


@dataclass
class CheckpointConfig:
    """What is saved, and where a run starts from; a run that resumes does not start warm."""

    every: int = 0  # steps; 0: only at the end
    keep: int = 2  # newest checkpoints kept; 0: all of them
    resume: str = "auto"  # auto (newest of this run's folder) | none | PATH
    warm_start: str | None = None  # PATH of a checkpoint whose weights alone a new run starts from
    warm_start_layers: list[str] = field(default_factory=lambda: ["*"])  # the layers that take them


@dataclass
class VerifyConfig:
    """What `python -m trainer.verify` compares."""

    steps: int = 3  # optimizer steps
    against: str = "process"  # process (one process, here) | none | PATH of what another launch saved
    save: str | None = None  # file for digests of every step, to be given to another launch's `against`


@dataclass
class PlanConfig:
    """What `python -m trainer.plan` plans for, and what its predictions assume."""

    ranks: int = 1  # how many there will be
    ranks_per_node: int | None = None  # None: all of them are on one node
    memory: Any = None  # bytes that a rank has, or "24GiB"; None: no limit
    flops: float = 5e13  # operations that a device does each second, sustained
    bandwidth: float = 1e11  # bytes a second between two ranks of a node
    network: float = 1e10  # bytes a second between two nodes
    latency: float = 1e-5  # seconds that the first byte of a message takes
    vocabulary: int | None = None  # tokens that the data will have; None: as its tokenizer says
    rows: int = 20  # layouts shown; 0: all of them


@dataclass
class RunConfig:
    """The run's folder."""

    dir: str = MISSING
    trace: bool = False  # write trace.json: every action of every rank, for ui.perfetto.dev


@dataclass
class Config:
    """The whole configuration of a run."""

    layout: LayoutConfig = field(default_factory=LayoutConfig)
    schedule: str = (
        "1f1b"  # gpipe | 1f1b | interleaved | zb_h1 | zb_v | the path of a file: docs/schedules.md
    )
    model: ModelConfig = MISSING
    data: DataConfig = MISSING
    optimizer: OptimizerConfig = MISSING
    batch: BatchConfig = field(default_factory=BatchConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    averaging: AveragingConfig = field(default_factory=AveragingConfig)
    precision: str = "fp32"  # fp32 | bf16 | fp16: what layers compute in; weights and gradients stay float32
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    verify: VerifyConfig = field(default_factory=VerifyConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    run: RunConfig = field(default_factory=RunConfig)
    threads: Any = "auto"  # per rank; "auto": the node's cores divided by its ranks
    device: str = "auto"  # auto | cpu | cuda
    progress: str = "auto"  # auto | bar | line | off


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return every value of a configuration by its dotted key."""
    values: dict[str, Any] = {}
    for name, value in (config if isinstance(config, dict) else vars(config)).items():
        key = f"{prefix}{name}"
        if isinstance(value, list) and any(is_dataclass(entry) for entry in value):
            values |= flat({str(number): entry for number, entry in enumerate(value)}, f"{key}.")
        elif is_dataclass(value) or (isinstance(value, dict) and value):
            values |= flat(value, f"{key}.")
        else:
            values[key] = value
    return values
