"""Metrics: what a validation reports beside the loss, each a sum and a count that are added as the loss is.

    metrics=[accuracy,my_package.scores:f1]

A metric is a function of a micro-batch's output and target, or a class, which is made once, with the run's
data if it takes an argument. It returns a sum and a count, numbers or tensors with one number. Sums and
counts are added over the micro-batches of all replicas; the metric's value is the sum by the count, or what
the metric's `finish` makes of that.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol, SupportsFloat, cast

import torch.nn.functional as F
from torch import Tensor

from trainer.activation import Activation
from trainer.config.import_path import load
from trainer.data.dataset import Data
from trainer.errors import UserError, suggest
from trainer.models.gpt import MASKED

_HERE = "trainer.models.metrics"
NAMES: Mapping[str, str] = MappingProxyType(
    {
        "accuracy": f"{_HERE}:accuracy",
        "top5": f"{_HERE}:top5",
        "perplexity": f"{_HERE}:Perplexity",
        "bits_per_byte": f"{_HERE}:BitsPerByte",
        "word_error_rate": "trainer.models.error_rates:word_error_rate",
        "character_error_rate": "trainer.models.error_rates:character_error_rate",
        "iou": "trainer.models.segmentation:iou",
    }
)


class Metric(Protocol):
    """A metric as a sum and a count."""

    def __call__(self, output: Activation, target: Activation) -> tuple[SupportsFloat, SupportsFloat]:
        """Return the sum and the count of a micro-batch."""


@dataclass(frozen=True)
class Metrics:
    """The metrics of a run.

    Attributes:
        functions: By name.
        asked: Whether the configuration asks for them; if not, the data suggests them, and those that do not
            fit the model's output are left out.
    """

    functions: Mapping[str, Metric] = field(default_factory=dict)
    asked: bool = True

    def value(self, name: str, total: float, count: float) -> float:
        """Return a metric's value from its sum and its count; not a number if there was nothing to count."""
        finish: Callable[[float], float] = getattr(self.functions[name], "finish", float)
        return finish(total / count) if count else math.nan


def build_metrics(names: Sequence[str] | None, data: Data) -> Metrics:
    """Return the metrics of some names or import paths; those that the data suggests for None.

    Raises:
        UserError: A metric cannot be imported or made.
    """
    asked = data.metrics if names is None else names
    functions = {name.rpartition(":")[2].rpartition(".")[2]: _build(name, data) for name in asked}
    if len(functions) < len(asked):
        raise UserError(f"metrics=[{','.join(asked)}]: two metrics have the same name")
    return Metrics(functions, asked=names is not None)


def _build(name: str, data: Data) -> Metric:
    if ":" not in name and name not in NAMES:
        raise UserError(
            f"metrics={name} is not one of {', '.join(NAMES)}, nor an import path, package.module:callable"
            f"{suggest(name, NAMES)}"
        )
    made = load(NAMES.get(name, name), "metrics")
    if isinstance(made, type):
        takes = any(_required(each) for each in inspect.signature(made).parameters.values())
        made = made(data) if takes else made()
    if not callable(made):
        raise UserError(f"metrics={name} makes a {type(made).__name__}, which is nothing to call")
    return cast(Metric, made)


def _required(parameter: inspect.Parameter) -> bool:
    named = parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    return named and parameter.default is parameter.empty


def accuracy(output: Activation, target: Activation) -> tuple[float, float]:
    """Return how many classes are the likeliest, and how many there are, without masked ones.

    Args:
        output: Logits [..., classes], or [batch, classes, height, width, ...]; or one logit for two classes.
        target: Classes, whole numbers; or 0 and 1 as floating-point numbers, with one logit for each.
    """
    return _among_likeliest(1, output, target)


def top5(output: Activation, target: Activation) -> tuple[float, float]:
    """Return how many classes are among the five likeliest, as `accuracy` does."""
    return _among_likeliest(5, output, target)


def _among_likeliest(number: int, output: Activation, target: Activation) -> tuple[float, float]:
    logits, classes = _tensors(output, target)
    if classes.is_floating_point():
        if logits.numel() != classes.numel() or not ((classes == 0) | (classes == 1)).all():
            raise UserError(f"targets of type {classes.dtype} are classes only if there are two, 0 and 1")
        right = (logits.reshape(classes.shape) > 0) == (classes > 0.5)  # noqa: PLR2004  (between 0 and 1)
        return float(right.sum()), float(classes.numel())
    rows, flat = _by_row(logits, classes)
    likeliest = rows.topk(min(number, rows.shape[-1])).indices
    return float((likeliest == flat[:, None]).sum()), float(len(flat))


def _tensors(output: Activation, target: Activation) -> tuple[Tensor, Tensor]:
    if not isinstance(output, Tensor) or not isinstance(target, Tensor):
        raise UserError(
            f"it takes a tensor of logits and a tensor of classes, not {type(output).__name__} and "
            f"{type(target).__name__}"
        )
    return output, target


def _by_row(logits: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits as [terms, classes] and classes as [terms], without masked terms.

    Where both places of the classes fit, it is torch's, the second, for images, and the last for sequences.
    """
    last = logits.shape[:-1] == classes.shape
    second = logits.dim() > 1 and (*logits.shape[:1], *logits.shape[2:]) == tuple(classes.shape)
    if not last and not second:
        raise UserError(f"logits of shape {tuple(logits.shape)} do not fit classes of {tuple(classes.shape)}")
    if second and (not last or logits.dim() > 3):  # noqa: PLR2004  (batch, classes and one more: a sequence)
        logits = logits.movedim(1, -1)
    flat = classes.reshape(-1)
    taken = flat != MASKED
    return logits.reshape(len(flat), -1)[taken], flat[taken]


class Perplexity:
    """The exponential of the mean cross-entropy of tokens."""

    def __call__(self, output: Activation, target: Activation) -> tuple[float, float]:
        """Return the sum of the cross-entropies, in nats, and the number of tokens."""
        rows, classes = _by_row(*_tensors(output, target))
        return F.cross_entropy(rows.float(), classes, reduction="sum").item(), float(len(classes))

    def finish(self, mean: float) -> float:
        """Return the perplexity."""
        return math.exp(mean) if mean < math.log(math.inf) else math.inf


class BitsPerByte:
    """The cross-entropy of tokens in bits for a byte of their text: comparable between tokenizers.

    Args:
        data: Its tokenizer knows the length of a token.
    """

    def __init__(self, data: Data) -> None:
        if data.tokenizer is None:
            raise UserError("metrics=bits_per_byte needs data with a tokenizer, such as data=text")
        self._tokenizer = data.tokenizer

    def __call__(self, output: Activation, target: Activation) -> tuple[float, float]:
        """Return the sum of the cross-entropies, in bits, and the number of bytes."""
        rows, classes = _by_row(*_tensors(output, target))
        bits = F.cross_entropy(rows.float(), classes, reduction="sum").item() / math.log(2)
        return bits, float(self._tokenizer.count_bytes(classes.tolist()))
