"""Text as samples: consecutive windows of tokens; each token is the target of those before it."""

import hashlib
import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.config.schema import TextConfig
from trainer.data.dataset import Data, Dataset
from trainer.data.files import find_text
from trainer.data.masked import Masked
from trainer.data.reading import encoding_notes, readable_files, watched
from trainer.data.tokenizer import FileTokenizer, build_tokenizer
from trainer.data.tokens import describe, map_tokens, prepare_cache, token_key, write_tokens
from trainer.errors import UserError

MASK_SEED = 0  # samples are masked alike in every run, so that validations can be compared
_log = logging.getLogger(__name__)


class Windows:
    """Samples of `context` inputs and `context` targets, shifted by one token.

    Sample i is the tokens [i * context, i * context + context + 1). Neighbouring windows share one token: the
    last target of the first is the first input of the second. Tokens after the last full window are not used.
    """

    def __init__(self, tokens: NDArray[Any], context: int) -> None:
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


def prepare(config: TextConfig) -> None:
    """Tokenise the text, unless `config.cache` already has its tokens; one rank of each node calls this.

    Raises:
        UserError: The text or the tokenizer cannot be read, or the cache cannot be written.
    """
    tokenizer = build_tokenizer(config.tokenizer)
    source = find_text(config.path, config.pattern)
    cache = Path(config.cache)
    key = token_key(source, tokenizer.digest)
    if describe(cache, key) is None:
        prepare_cache(cache)
        _log.info("Tokenising %s (%d files, %.1f MB)", source.title, len(source.files), source.size / 1e6)
        texts, notes = readable_files(source, any_bytes=config.tokenizer == "bytes")
        arrays = tokenizer.encode_files(watched(texts))

        def all_notes() -> list[str]:
            return [*notes, *encoding_notes(texts, source.title, tokenizer.invalid)]

        write_tokens(cache, key, arrays, tokenizer.vocabulary, all_notes)


def load(config: TextConfig) -> Data:
    """Return the text's samples; the last fraction `config.validation` of the tokens is held out.

    Raises:
        UserError: The text or the tokenizer cannot be read, the tokens were not prepared, or the text is
            too short.
    """
    tokenizer = build_tokenizer(config.tokenizer)
    source = find_text(config.path, config.pattern)
    cache = Path(config.cache)
    key = token_key(source, tokenizer.digest)
    description = describe(cache, key)
    if description is None:
        raise UserError(
            f"the tokens of {source.title} are not in data.cache={cache}: its files have changed since, or "
            "the ranks of this node do not share the folder; run again"
        )
    tokens = map_tokens(cache, key, description)
    training, validation = _split(tokens, config, source.title)
    facts = [description.digest, tokenizer.digest, config.context, config.validation]
    facts += [config.objective, config.masked, config.masking] if config.objective == "masked" else []
    return Data(
        training=_with_objective(training, tokenizer, config, dynamic=config.masking == "dynamic"),
        validation=_with_objective(validation, tokenizer, config),
        fingerprint=hashlib.sha256(json.dumps(facts).encode()).hexdigest(),
        vocabulary=_vocabulary(tokenizer, config),
        tokenizer=tokenizer if config.objective == "next" else None,  # a masked model writes no text
        notes=(*source.notes, *description.notes),
        metrics=("accuracy",) if config.objective == "masked" else ("perplexity", "bits_per_byte"),
    )


def _with_objective(
    windows: Windows, tokenizer: FileTokenizer, config: TextConfig, *, dynamic: bool = False
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
        seed=MASK_SEED,
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
    windows = Windows(np.zeros(2 * config.context + 1, dtype=np.uint8), config.context)
    return Data(windows, windows, fingerprint="example", vocabulary=vocabulary)


def _split(tokens: NDArray[Any], config: TextConfig, title: str) -> tuple[Windows, Windows]:
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
    return Windows(tokens[:cut], config.context), Windows(tokens[cut:], config.context)
