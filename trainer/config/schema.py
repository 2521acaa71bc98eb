"""The configuration: one typed dataclass per part; `conf/` gives the recipes.

Hydra composes the files in `conf/` and the command line into `Config`. `trainer.config.check` then checks
every value against the range that its field states (`trainer.config.fields`), before torch or MPI are
imported. Every error names the dotted key. Models, data and optimizers are choices of
`trainer.config.registry`.
"""

from dataclasses import dataclass, field, is_dataclass
from typing import Any

from omegaconf import MISSING

from trainer.config.data import (
    BinaryConfig,
    Cifar10Config,
    CustomDataConfig,
    DataConfig,
    DigitsConfig,
    ImagesConfig,
    ScenesConfig,
    TextConfig,
)
from trainer.config.fields import (
    above_zero_to_one,
    auto_or_positive,
    not_negative,
    one_of,
    plain,
    positive,
    size,
    text,
)
from trainer.config.models import (
    CustomModelConfig,
    GPTConfig,
    HFConfig,
    ModelConfig,
    ModuleConfig,
    ResNetConfig,
    SimpleNetConfig,
    UNetConfig,
)
from trainer.config.optimizers import (
    AdamWConfig,
    CustomOptimizerConfig,
    GroupConfig,
    LRScheduleConfig,
    OptimizerConfig,
    SGDConfig,
)
from trainer.config.update import SynchronousConfig, UpdateConfig
from trainer.schedule.resolve import RecipeNames

__all__ = [
    "AdamWConfig",
    "AveragingConfig",
    "BatchConfig",
    "BinaryConfig",
    "CheckpointConfig",
    "Cifar10Config",
    "Config",
    "CustomDataConfig",
    "CustomModelConfig",
    "CustomOptimizerConfig",
    "DataConfig",
    "DigitsConfig",
    "EvalConfig",
    "EvaluateConfig",
    "GPTConfig",
    "GenerateConfig",
    "GroupConfig",
    "HFConfig",
    "ImagesConfig",
    "LRScheduleConfig",
    "LayoutConfig",
    "LossConfig",
    "MemoryConfig",
    "ModelConfig",
    "ModuleConfig",
    "OptimizerConfig",
    "PlanConfig",
    "ResNetConfig",
    "RunConfig",
    "SGDConfig",
    "ScenesConfig",
    "SimpleNetConfig",
    "SynchronousConfig",
    "TextConfig",
    "TokenizeConfig",
    "TrainConfig",
    "UNetConfig",
    "UpdateConfig",
    "VerifyConfig",
    "flat",
]


@dataclass
class LayoutConfig:
    """How the ranks share the model."""

    stages: Any = auto_or_positive(
        "auto", "workers that hold one model; the number of replicas follows from the world"
    )
    virtual_stages: int | None = positive(
        None, "stages of each worker, where the schedule interleaves; null takes the schedule's own"
    )
    devices_per_rank: int = positive(1, "devices that one rank drives, each with a stage of its own")
    boundaries: list[int] | None = plain(
        None, "first layer of every stage but the first; null takes the best cut"
    )


@dataclass
class BatchConfig:
    """Batch sizes; neither depends on the layout."""

    global_size: int = positive(64, "size of one optimizer step, over all replicas", unit="samples")
    micro_size: int = positive(4, "size of one forward pass", unit="samples")


@dataclass
class AveragingConfig:
    """How the replicas average the gradients of equal stages."""

    op: str = one_of("average", ("average", "adasum"), "how gradients are combined")
    compression: str = one_of("none", ("none", "fp16"), "`fp16` sends gradients as float16")


@dataclass
class LossConfig:
    """The loss, where it is not the model's own."""

    target: str | None = plain(
        None, "a loss, by import path, such as `torch.nn:MSELoss`; null takes the model's own"
    )
    options: dict[str, Any] = plain({}, "keyword arguments for the target")


@dataclass
class MemoryConfig:
    """What backward passes recompute rather than keep."""

    recompute: str = one_of(
        "none",
        ("none", "selective", "full"),
        "`selective` recomputes all but products and attention, `full` all but a layer's inputs",
    )
    limit: Any = size(
        None, 'what a rank may hold, such as "12GiB"; recomputes as little as that takes; null sets no limit'
    )


@dataclass
class TrainConfig:
    """How long to train, and from which seed."""

    steps: int | None = positive(None, "optimizer steps; null leaves the end to `train.epochs`")
    epochs: float | None = positive(
        None, "passes over the training samples; with `train.steps`, whichever ends first"
    )
    seed: int = not_negative(0, "seed of weights, dropout and the order of the samples")
    deterministic: bool = plain(False, "whether a run repeated in the same layout gives the same bits")
    non_finite: str = one_of(
        "stop", ("stop", "skip"), "what to do where a loss or a gradient is not finite: `skip` drops the step"
    )
    check_replicas: int = not_negative(
        100, "steps between comparisons of the replicas' weights; 0 compares only the initial ones"
    )
    stall_seconds: float = not_negative(
        30.0, "without progress of any rank, after which a run ends; 0 does not watch", unit="seconds"
    )
    busy_seconds: float = positive(1800.0, "that one action may compute", unit="seconds")
    freeze: list[str] = text(
        [],
        "what keeps its weights: layers, or `layer/parameter`, such as `[block.*,*/*.bias]`",
        "a list of patterns, such as [embedding,block.*]",
    )


@dataclass
class EvalConfig:
    """Validation."""

    every: int = not_negative(0, "steps between validations; 0 validates only at the end")
    samples: int = not_negative(256, "validation samples each time; 0 takes all of them")


@dataclass
class EvaluateConfig:
    """What `python -m trainer.evaluate` evaluates on."""

    samples: int = not_negative(0, "validation samples; 0 takes all of them")
    output: str | None = plain(None, "file for the results, as JSON")


@dataclass
class GenerateConfig:
    """What a language model writes: at the end of a run, and with `python -m trainer.generate`."""

    tokens: int = not_negative(
        0, "tokens to write at most; 0 writes no text at the end of a run, and 128 with `trainer.generate`"
    )
    prompt: str = plain("def ", "what the text begins with, where `prompts` is null")
    prompts: str | None = text(
        None,
        "file of prompts, one a line, or objects with a `prompt` if its name ends in .jsonl; `-` reads "
        "standard input",
        "null, -, or the path of a file",
    )
    output: str | None = text(
        None,
        "file for the texts, one JSON object a line; null prints them",
        "null, or the path of a file",
    )
    temperature: float = not_negative(0.8, "randomness of the choice; 0 always takes the likeliest token")
    top_k: int = not_negative(40, "how many of the likeliest tokens to sample among; 0 takes all")
    top_p: float = above_zero_to_one(
        1.0, "what the likeliest tokens to sample among must be worth together; 1 takes all"
    )
    repetition_penalty: float = positive(1.0, "what tokens that the text has already lose; 1 is nothing")
    stop: list[str] = text(
        [], "strings that end a text, which does not contain them", "a list of strings, such as [END]"
    )
    ignore_eos: bool = plain(False, "whether to write on after the model's token for the end of a text")
    tokenizer: str = text(
        "auto",
        "`auto` takes that of the run or of the model's folder; or `bytes`, or the path of a tokenizers file",
        "auto, bytes, or the path of a file",
    )
    cache: bool = plain(True, "whether layers keep keys and values rather than compute them for every token")
    batch: int = positive(8, "prompts that are computed together, as one group")
    in_flight: Any = auto_or_positive(
        "auto", "groups that a replica works on at a time; `auto` takes 4, or as many as it has stages"
    )


@dataclass
class CheckpointConfig:
    """What a run saves, and what it starts from; a run that resumes does not start warm."""

    every: int = not_negative(0, "steps between checkpoints; 0 saves by time alone, and at the end")
    minutes: float = not_negative(
        10.0, "minutes after which a checkpoint is due, whatever the step; 0 saves by steps alone"
    )
    keep: int = not_negative(2, "newest checkpoints to keep; 0 keeps all of them")
    resume: str = text(
        "auto",
        "`auto` resumes from the newest checkpoint in the run's folder; or `none`, or a path",
        "auto, none, or the path of a checkpoint",
    )
    warm_start: str | None = text(
        None,
        "checkpoint whose weights, and nothing else, a new run starts from",
        "null, or the path of a checkpoint",
    )
    warm_start_layers: list[str] = text(
        ["*"],
        "layers that take the weights of `warm_start`",
        "a list of patterns of layers, such as [block.*]",
    )


@dataclass
class VerifyConfig:
    """What `python -m trainer.verify` compares."""

    steps: int = positive(3, "optimizer steps to compare")
    against: str = plain(
        "process", "`process` compares with one process, started here; or `none`, or a file of `verify.save`"
    )
    save: str | None = plain(None, "file for digests of every step, for another launch's `verify.against`")


@dataclass
class PlanConfig:
    """What `python -m trainer.plan` plans for, and what its predictions assume."""

    ranks: int = positive(1, "ranks to plan for; `ranks=8` is short for it")
    ranks_per_node: int | None = positive(None, "ranks of each node; null puts all of them on one")
    memory: Any = size(None, 'what a rank has, such as "24GiB" (short: `memory=24GiB`); null sets no limit')
    flops: float = positive(5e13, "operations that a device sustains each second")
    bandwidth: float = positive(1e11, "between two ranks of a node", unit="bytes/s")
    network: float = positive(1e10, "between two nodes", unit="bytes/s")
    latency: float = not_negative(1e-5, "time that the first byte of a message takes", unit="seconds")
    vocabulary: int | None = positive(
        None, "distinct tokens that the data will have; null asks the tokenizer"
    )
    rows: int = not_negative(20, "layouts to show; 0 shows all of them")


@dataclass
class TokenizeConfig:
    """What `python -m trainer.tokenize` does with the text of `data`."""

    train: str | None = plain(
        None, "file for a vocabulary that is trained on the text, such as tokenizer.json; null trains none"
    )
    kind: str = one_of("bpe", ("bpe", "wordpiece"), "byte-level BPE as GPT-2's, or WordPiece as BERT's")
    size: int = positive(32000, "tokens of the vocabulary, at most")
    special: list[str] = text(
        [], "further special tokens", "a list of tokens, such as ['<user>','<assistant>']"
    )
    lowercase: bool = plain(True, "whether WordPiece ignores case and accents")
    min_frequency: int = positive(2, "how often a pair must occur to become a token")
    workers: Any = auto_or_positive(
        "auto", "processes; `auto` takes one for each core, if there is much text"
    )


@dataclass
class RunConfig:
    """The run's folder."""

    dir: str | None = plain(None, "the run's folder; null makes a new one, `runs/<time>`")
    trace: bool = plain(False, "whether to write trace.json, every action of every rank, for ui.perfetto.dev")


@dataclass
class Config:
    """The whole configuration of a run."""

    layout: LayoutConfig = field(default_factory=LayoutConfig)
    schedule: str = one_of(
        "1f1b", RecipeNames(), "the order of the ranks' actions, by name or from a file", or_file=True
    )
    model: ModelConfig = MISSING
    data: DataConfig = MISSING
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = MISSING
    update: UpdateConfig = MISSING
    batch: BatchConfig = field(default_factory=BatchConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    averaging: AveragingConfig = field(default_factory=AveragingConfig)
    precision: str = one_of(
        "fp32", ("fp32", "bf16", "fp16"), "what layers compute in; weights and gradients stay float32"
    )
    metrics: list[str] | None = text(
        None,
        "what a validation reports beside the loss: names of `trainer.models.metrics`, or "
        "`package.module:callable`; null takes those of the data",
        "a list of metrics, such as [accuracy]",
    )
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    verify: VerifyConfig = field(default_factory=VerifyConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    tokenize: TokenizeConfig = field(default_factory=TokenizeConfig)
    run: RunConfig = field(default_factory=RunConfig)
    threads: Any = auto_or_positive(
        "auto", "threads of each rank; `auto` divides the node's cores by its ranks"
    )
    logger: list[str] = text(
        [],
        "what else writes a run's numbers: modules of `trainer.metrics.loggers`, such as `csv`, or "
        "`package.module:callable`",
        "a list of loggers, such as [csv]",
    )
    device: str = one_of("auto", ("auto", "cpu", "cuda"), "where layers compute; `auto` takes GPUs if any")
    progress: str = one_of("auto", ("auto", "bar", "line", "off"), "how rank 0 shows progress")


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
