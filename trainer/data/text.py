"""Text as samples: consecutive windows of tokens, each token the target of those before it."""

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
from trainer.data.dataset import Data
from trainer.data.files import find_text
from trainer.data.tokenizer import build_tokenizer
from trainer.data.tokens import describe, map_tokens, prepare_cache, token_key, write_tokens
from trainer.errors import UserError

_log = logging.getLogger(__name__)


class Windows:
    """Samples of `context` inputs and as many targets, one token later.

    Sample i is the tokens [i * context, i * context + context + 1): windows share the one token that is the
    last target of the first and the first input of the second. What is left at the end is not used.
    """

    def __init__(self, tokens: NDArray[Any], context: int) -> None:
        self._tokens = tokens
        self._context = context

    def __len__(self) -> int:
        """Return the number of whole windows."""
        return max(0, len(self._tokens) - 1) // self._context

    def inputs(self, samples: NDArray[np.int64]) -> Tensor:
        """Return int64 tokens [samples, context]."""
        return self._window(samples, 0)

    def targets(self, samples: NDArray[np.int64]) -> Tensor:
        """Return int64 tokens [samples, context], one later than the inputs."""
        return self._window(samples, 1)

    def _window(self, samples: NDArray[np.int64], shift: int) -> Tensor:
        starts = samples.astype(np.int64)[:, None] * self._context + shift
        positions = starts + np.arange(self._context, dtype=np.int64)
        return torch.from_numpy(self._tokens[positions].astype(np.int64))


def prepare(config: TextConfig) -> None:
    """Tokenise the text, unless `config.cache` has its tokens already. Called by one rank of each node.

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
        arrays = tokenizer.encode_files(file.path for file in source.files)
        write_tokens(cache, key, arrays, tokenizer.vocabulary)


def load(config: TextConfig) -> Data:
    """Return the text's samples: the last `config.validation` of the tokens held out, the rest trained on.

    Raises:
        UserError: The text or the tokenizer cannot be read, nobody prepared the tokens, or the text is too
            short.
    """
    tokenizer = build_tokenizer(config.tokenizer)
    source = find_text(config.path, config.pattern)
    cache = Path(config.cache)
    key = token_key(source, tokenizer.digest)
    description = describe(cache, key)
    if description is None:
        raise UserError(
            f"the tokens of {source.title} are not in data.cache={cache}: its files changed meanwhile, or "
            "the folder is not the same on all ranks of this node; run again"
        )
    tokens = map_tokens(cache, key, description)
    training, validation = _split(tokens, config, source.title)
    facts = [description.digest, tokenizer.digest, config.context, config.validation]
    return Data(
        training=training,
        validation=validation,
        fingerprint=hashlib.sha256(json.dumps(facts).encode()).hexdigest(),
        vocabulary=tokenizer.vocabulary,
        tokenizer=tokenizer,
    )


def example(config: TextConfig, vocabulary: int | None = None) -> Data:
    """Return a few samples without numbers to speak of, with the types and shapes of the text's.

    Args:
        config: The text's; only its context, and where there is no vocabulary its tokenizer, matter.
        vocabulary: The number of distinct tokens; None: the tokenizer's.
    """
    if vocabulary is None:
        vocabulary = build_tokenizer(config.tokenizer).vocabulary
    windows = Windows(np.zeros(2 * config.context + 1, dtype=np.uint8), config.context)
    return Data(windows, windows, fingerprint="example", vocabulary=vocabulary)


def _split(tokens: NDArray[Any], config: TextConfig, title: str) -> tuple[Windows, Windows]:
    """Return the training and the validation part, each of at least one sample."""
    held_out = int(len(tokens) * config.validation)
    cut = len(tokens) - held_out
    shortest = config.context + 1
    if min(cut, held_out) < shortest:
        smaller_share = min(config.validation, 1 - config.validation)
        raise UserError(
            f"{title} is too short: {len(tokens)} tokens, of which data.validation={config.validation:g} "
            f"leaves {cut} for training and {held_out} for validation, but data.context={config.context} "
            f"needs {shortest} in each, {math.ceil(shortest / smaller_share)} in all: "
            "give a longer text or a smaller data.context"
        )
    return Windows(tokens[:cut], config.context), Windows(tokens[cut:], config.context)
