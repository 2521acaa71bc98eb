"""The range of every value, checked before torch and MPI are imported; every error names the dotted key."""

from collections.abc import Callable, Mapping
from fnmatch import filter as matching
from typing import Any, NamedTuple

from trainer.config import Config, flat
from trainer.errors import UserError, suggest
from trainer.schedule.resolve import check_schedule
from trainer.sizes import parse_size


class _Range(NamedTuple):
    words: str
    holds: Callable[[Any], bool]
    keys: tuple[str, ...]


def _number_or_auto(value: Any) -> bool:
    return value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value > 0)


def _texts(value: Any) -> bool:
    return all(isinstance(text, str) and text for text in (value if isinstance(value, list) else [value]))


# A value of None ("not given") is in every range; keys of parts that were not chosen are passed over.
# A star stands for any entry of a list.
_RANGES = (
    _Range(
        "greater than 0",
        lambda value: value > 0,
        (
            "layout.virtual_stages",
            "layout.devices_per_rank",
            "batch.global_size",
            "batch.micro_size",
            "model.blocks",
            "model.width",
            "model.heads",
            "model.context",
            "model.features",
            "model.hidden",
            "data.context",
            "data.samples",
            "data.features",
            "train.steps",
            "verify.steps",
            "train.epochs",
            "optimizer.clip",
            "optimizer.epsilon",
        ),
    ),
    _Range(
        "0 or greater",
        lambda value: value >= 0,
        (
            "optimizer.lr",
            "optimizer.weight_decay",
            "optimizer.groups.*.lr",
            "optimizer.groups.*.weight_decay",
            "optimizer.rate.warmup",
            "train.seed",
            "eval.every",
            "eval.samples",
            "generate.tokens",
            "generate.temperature",
            "generate.top_k",
            "checkpoint.every",
            "checkpoint.keep",
            "data.seed",
        ),
    ),
    _Range(
        "from 0 to below 1",
        lambda value: 0 <= value < 1,
        ("model.dropout", "optimizer.momentum", "optimizer.beta1", "optimizer.beta2"),
    ),
    _Range("a size, such as 512MiB or 12GB", lambda value: bool(parse_size(value)), ("memory.limit",)),
    _Range("from 0 to 1", lambda value: 0 <= value <= 1, ("optimizer.rate.final",)),
    _Range("auto, or a whole number greater than 0", _number_or_auto, ("layout.stages", "threads")),
    _Range("a list of patterns, such as [embedding,block.*]", _texts, ("train.freeze",)),
    _Range("a list of patterns of layers, such as [block.*]", _texts, ("checkpoint.warm_start_layers",)),
    _Range("a pattern, such as block.*", _texts, ("optimizer.groups.*.match",)),
    _Range("null, or the path of a checkpoint", _texts, ("checkpoint.warm_start",)),
)

_CHOICES: Mapping[str, tuple[str, ...]] = {
    "device": ("auto", "cpu", "cuda"),
    "progress": ("auto", "bar", "line", "off"),
    "memory.recompute": ("none", "selective", "full"),
    "precision": ("fp32", "bf16", "fp16"),
    "averaging.op": ("average", "adasum"),
    "averaging.compression": ("none", "fp16"),
    "optimizer.rate.name": ("constant", "cosine", "linear"),
    "model.positions": ("learned", "rotary"),
}


def check(config: Config) -> None:
    """Check every value by itself; what hangs on the world, the data or the model is checked with them.

    Raises:
        UserError: A value is out of its range, or not one of its choices.
    """
    values = flat(config)
    check_schedule(config.schedule)
    for key, choices in _CHOICES.items():
        if key in values and values[key] not in choices:
            raise UserError(
                f"{key}={values[key]} is not one of {', '.join(choices)}{suggest(values[key], choices)}"
            )
    for limits in _RANGES:
        for key in (key for pattern in limits.keys for key in matching(values, pattern)):
            if values[key] is not None and not limits.holds(values[key]):
                raise UserError(f"{key}={values[key]} must be {limits.words}")
    if config.train.steps is None and config.train.epochs is None:
        raise UserError("train.steps and train.epochs are both null: give one of them")
    if config.memory.limit is not None and config.memory.recompute != "none":
        raise UserError(
            f"memory.limit={config.memory.limit} chooses what is recomputed, but memory.recompute="
            f"{config.memory.recompute} is given too: give one of them"
        )
    if not config.checkpoint.resume:
        raise UserError("checkpoint.resume must be auto, none, or the path of a checkpoint")
