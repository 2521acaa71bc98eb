"""Text as samples: consecutive windows of tokens; each token is the target of those before it."""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.config.fields import spec_of
from trainer.config.schema import TextConfig
from trainer.data.dataset import Data, Dataset
from trainer.data.encoding import key_of, tokenise
from trainer.data.masked import Masked
from trainer.data.mixture import Chosen, Mixture
from trainer.data.pieces import TextSource
from trainer.data.tokenizer import FileTokenizer, build_tokenizer
from trainer.data.tokens import MappedTokens, describe, map_tokens, not_cached
from trainer.errors import UserError, suggest

MASK_SEED = 0  # samples are masked alike in every run, so that validations can be compared


class Windows:
    """Samples of `context` inputs and `context` targets, shifted by one token.

    Sample i is the tokens [i * context, i * context + context + 1). Neighbouring windows share one token: the
    last target of the first is the first input of the second. Tokens after the last full window are not used.
    """

    def __init__(self, tokens: NDArray[Any] | MappedTokens, context: int) -> None:
        self._tokens = tokens
        self._context = context

    def __len__(self) -> int:
        """Return the number of full windows."""
        return max(0, len(self._tokens) - 1) // self._context

    def inputs(self, samples: NDArray[np.int64]) -> Tensor:
        """Return int64 tokens [samples, context]."""
        return self._window(samples, 0)

    def targets(self, samples: NDArray[np.int64]) -> Tensor:
        """Return int64 tokens [samples, context], one position after the inputs."""
        return self._window(samples, 1)

    def _window(self, samples: NDArray[np.int64], shift: int) -> Tensor:
        starts = samples.astype(np.int64)[:, None] * self._context + shift
        positions = starts + np.arange(self._context, dtype=np.int64)
        return torch.from_numpy(self._tokens[positions].astype(np.int64))


def sources_of(config: TextConfig) -> list[tuple[TextSource, float]]:
    """Return the configured sources of text, with their weights.

    Raises:
        UserError: The mixture is not written as it must be.
    """
    if not config.mixture:
        return [(TextSource.of(config), 1.0)]
    if config.path is not None:
        raise UserError("data.path and data.mixture cannot both be given: put the path into the mixture")
    return [_source(f"data.mixture.{i}", entry, config) for i, entry in enumerate(config.mixture)]


def _source(key: str, entry: Any, config: TextConfig) -> tuple[TextSource, float]:
    if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
        raise UserError(f"{key}={entry} must name a path, such as {{path: texts, weight: 2}}")
    known = ("path", "weight", "pattern", "format", "field")
    for name in entry:
        if name not in known:
            raise UserError(f"there is no key {key}.{name}{suggest(name, known)}")
    weight = entry.get("weight", 1)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
        raise UserError(f"{key}.weight={weight} must be a number greater than 0")
    asked = {name: str(entry.get(name, getattr(config, name))) for name in ("pattern", "format", "field")}
    spec = spec_of(TextConfig, "format")
    if spec is not None and (problem := spec.complaint(f"{key}.format", asked["format"])):
        raise UserError(problem)
    return TextSource(entry["path"], **asked), float(weight)


def prepare(config: TextConfig) -> None:
    """Tokenise the text, unless `config.cache` already has its tokens; one rank of each node calls this.

    Raises:
        UserError: The text or the tokenizer cannot be read, or the cache cannot be written.
    """
    for text, _ in sources_of(config):
        tokenise(text, config.tokenizer, Path(config.cache))


def load(config: TextConfig) -> Data:
    """Return the text's samples; of each source the last fraction `config.validation` is held out.

    Raises:
        UserError: The text or the tokenizer cannot be read, the tokens were not prepared, or the text is
            too short.
    """
    tokenizer = build_tokenizer(config.tokenizer)
    sources = sources_of(config)
    loaded = [_load(text, config, tokenizer, seed=i) for i, (text, _) in enumerate(sources)]
    training, validation = loaded[0].training, loaded[0].validation
    facts: list[Any] = [loaded[0].digest, tokenizer.digest, config.context, config.validation]
    facts += [config.objective, config.masked, config.masking] if config.objective == "masked" else []
    if config.mixture:
        weights = [weight for _, weight in sources]
        training = Mixture([each.training for each in loaded], weights)
        held_out = Mixture([each.validation for each in loaded], weights)
        validation = Chosen(held_out, held_out.in_proportion())
        facts += [[each.digest, weight] for each, weight in zip(loaded, weights, strict=True)]
    return Data(
        training=training,
        validation=validation,
        fingerprint=hashlib.sha256(json.dumps(facts).encode()).hexdigest(),
        vocabulary=_vocabulary(tokenizer, config),
        tokenizer=tokenizer if config.objective == "next" else None,  # a masked model writes no text
        notes=tuple(note for each in loaded for note in each.notes),
        example=_with_objective(_example(config), tokenizer, config),
        metrics=("accuracy",) if config.objective == "masked" else ("perplexity", "bits_per_byte"),
    )


@dataclass(frozen=True)
class _Loaded:
    """One source's samples, the digest of its tokens, and notes."""

    training: Dataset
    validation: Dataset
    digest: str
    notes: tuple[str, ...]


def _load(text: TextSource, config: TextConfig, tokenizer: FileTokenizer, seed: int) -> _Loaded:
    source = text.find()
    cache = Path(config.cache)
    key = key_of(text, source, tokenizer)
    description = describe(cache, key)
    if description is None:
        raise not_cached(f"the tokens of {source.title}", cache)
    training, validation = _split(map_tokens(cache, key, description), config, source.title)
    return _Loaded(
        _with_objective(training, tokenizer, config, seed, dynamic=config.masking == "dynamic"),
        _with_objective(validation, tokenizer, config, seed),
        description.digest,
        (*source.notes, *description.notes),
    )


def _with_objective(
    windows: Windows, tokenizer: FileTokenizer, config: TextConfig, seed: int = 0, *, dynamic: bool = False
) -> Dataset:
    """Return the samples with the targets of the configured objective.

    Raises:
        UserError: Tokens are to be masked, and the tokenizer has no token for that.
    """
    if config.objective == "next":
        return windows
    if tokenizer.mask is None:
        raise UserError(
            f"data.objective=masked needs a token that masks others, [MASK] or <mask>, which "
            f"data.tokenizer={config.tokenizer} has not"
        )
    return Masked(
        windows,
        share=config.masked,
        mask=tokenizer.mask,
        vocabulary=tokenizer.vocabulary,
        seed=MASK_SEED + seed,
        dynamic=dynamic,
    )


def _vocabulary(tokenizer: FileTokenizer, config: TextConfig) -> int:
    mask = tokenizer.mask if config.objective == "masked" else None
    return tokenizer.vocabulary if mask is None else max(tokenizer.vocabulary, mask + 1)


def example(config: TextConfig, vocabulary: int | None = None) -> Data:
    """Return a few samples of zeros, with the types and shapes of the text's samples.

    Args:
        config: The text's; only its context matters, and without a vocabulary its tokenizer.
        vocabulary: The number of distinct tokens; None: that of the tokenizer.
    """
    if vocabulary is None:
        vocabulary = _vocabulary(build_tokenizer(config.tokenizer), config)
    windows = _example(config)
    return Data(windows, windows, fingerprint="example", vocabulary=vocabulary)


def _example(config: TextConfig) -> Windows:
    return Windows(np.zeros(2 * config.context + 1, dtype=np.uint8), config.context)


def _split(tokens: MappedTokens, config: TextConfig, title: str) -> tuple[Windows, Windows]:
    """Return the training part and the validation part, each with at least one sample."""
    held_out = int(len(tokens) * config.validation)
    cut = len(tokens) - held_out
    shortest = config.context + 1
    if min(cut, held_out) < shortest:
        smaller_share = min(config.validation, 1 - config.validation)
        raise UserError(
            f"{title} is too short: {len(tokens)} tokens, of which data.validation={config.validation:g} "
            f"leaves {cut} for training and {held_out} for validation, but data.context={config.context} "
            f"needs {shortest} in each, {math.ceil(shortest / smaller_share)} in total: "
            "give a longer text or a smaller data.context"
        )
    parts = tokens.part(0, cut), tokens.part(cut, len(tokens))
    return Windows(parts[0], config.context), Windows(parts[1], config.context)
