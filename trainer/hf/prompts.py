"""Prompts and their completions as samples: what a causal model of Hugging Face's is fine-tuned on.

Sample i holds the tokens of one line of a jsonl file. The targets are the tokens one place later, where the
model learns to write these, and elsewhere `IGNORED`. A batch is padded on the right to its longest sample,
so the model's own positions are right, and the mask hides the padding.

The tokens are written once per node (`trainer.data.tokens`): twice each token, plus 1 where it is learnt.
"""

import hashlib
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.activation import Activation
from trainer.config.data import PromptsConfig
from trainer.data.dataset import Data
from trainer.data.files import Source, find_text
from trainer.data.masked import IGNORED
from trainer.data.tokens import (
    MappedTokens,
    describe,
    map_tokens,
    not_cached,
    prepare_cache,
    token_key,
    write_tokens,
)
from trainer.errors import UserError
from trainer.hf.conversations import Conversations

_TOKENIZER = ("*token*", "*.jinja", "vocab*", "merges*", "*.model", "config.json")  # files that define it
_PADDING = 0  # any token: the mask hides it, and every model knows this one


class Prompts:
    """Samples of one line each.

    Args:
        coded: The tokens of all lines: twice each, plus 1 where it is learnt.
        starts: The places of the samples' first tokens.
        ends: The places after their last tokens.
    """

    def __init__(
        self, coded: NDArray[Any] | MappedTokens, starts: NDArray[np.int64], ends: NDArray[np.int64]
    ) -> None:
        self._coded = coded
        self._starts = starts
        self._ends = ends

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._starts)

    def inputs(self, samples: NDArray[np.int64]) -> Activation:
        """Return int64 `input_ids` and `attention_mask` [samples, time]; the mask is 0 for padding."""
        rows = [row[:-1] >> 1 for row in self._rows(samples)]
        return {
            "input_ids": _padded(rows, _PADDING),
            "attention_mask": _padded([np.ones_like(row) for row in rows], 0),
        }

    def targets(self, samples: NDArray[np.int64]) -> Tensor:
        """Return int64 targets [samples, time]."""
        rows = [row[1:] for row in self._rows(samples)]
        return _padded([np.where(row & 1, row >> 1, IGNORED) for row in rows], IGNORED)

    def _rows(self, samples: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        return [self._coded[self._starts[i] : self._ends[i]].astype(np.int64) for i in samples]


def _padded(rows: list[NDArray[np.int64]], value: int) -> Tensor:
    table = np.full((len(rows), max(map(len, rows))), value, np.int64)
    for line, row in zip(table, rows, strict=True):
        line[: len(row)] = row
    return torch.from_numpy(table)


def prepare(config: PromptsConfig) -> None:
    """Tokenise the lines, unless `config.cache` already has them; one rank of each node calls this.

    Raises:
        UserError: The file or the tokenizer cannot be read, a line is broken, or the cache cannot be written.
    """
    source, cache = _source(config), Path(config.cache)
    key = _key(config, source)
    if describe(cache, key) is not None and describe(cache, f"{key}-lengths") is not None:
        return
    prepare_cache(cache)
    conversations = Conversations(config.tokenizer)
    lengths: list[int] = []
    cut = lost = largest = 0

    def coded() -> Iterator[NDArray[Any]]:
        nonlocal cut, lost, largest
        for place, line in _lines(source.root):
            try:
                tokens = conversations.tokens(line)
            except UserError as error:
                raise UserError(f"{place}: {error}") from error
            cut += len(tokens) > config.context + 1
            tokens = tokens[: config.context + 1]  # the last one is a target only
            if not any(learnt for _, learnt in tokens[1:]):
                lost += 1
                continue
            largest = max(largest, *(token for token, _ in tokens))
            lengths.append(len(tokens))
            yield np.array([2 * token + learnt for token, learnt in tokens], dtype=np.uint32)

    write_tokens(cache, key, coded(), 1 << 32, lambda: _notes(source, config, cut, lost))
    if not lengths:
        raise UserError(
            f"{source.title} has no sample with anything to learn"
            + (f": data.context={config.context} cuts all {lost} completions off" if lost else "")
        )
    write_tokens(cache, f"{key}-lengths", [np.array([largest, *lengths], dtype=np.uint32)], 1 << 32)


def _notes(source: Source, config: PromptsConfig, cut: int, lost: int) -> list[str]:
    if not cut and not lost:
        return []
    words = f"{source.title}: {cut} samples are longer than data.context={config.context}, and were cut off"
    return [words + (f"; {lost} have no completion left, and were left out" if lost else "")]


def load(config: PromptsConfig) -> Data:
    """Return the samples; a share `config.validation` of them, chosen at random, is held out.

    Raises:
        UserError: The file cannot be read, its tokens were not prepared, or it has too few lines.
    """
    source, cache = _source(config), Path(config.cache)
    key = _key(config, source)
    text, described = describe(cache, key), describe(cache, f"{key}-lengths")
    if text is None or described is None:
        raise not_cached(f"the tokens of {source.title}", cache)
    largest, *_ = lengths = map_tokens(cache, f"{key}-lengths", described).all().astype(np.int64)
    ends = np.cumsum(lengths[1:])
    starts = ends - lengths[1:]
    held_out = max(1, round(config.validation * len(ends)))
    if held_out >= len(ends):
        raise UserError(f"{source.title} has {len(ends)} samples: it needs two, one of which is held out")
    order = np.random.RandomState(config.seed).permutation(len(ends))
    coded = map_tokens(cache, key, text)
    training, validation = (np.sort(part) for part in (order[held_out:], order[:held_out]))
    facts = [text.digest, described.digest, config.validation, config.seed]
    return Data(
        training=Prompts(coded, starts[training], ends[training]),
        validation=Prompts(coded, starts[validation], ends[validation]),
        fingerprint=hashlib.sha256(json.dumps(facts).encode()).hexdigest(),
        vocabulary=int(largest) + 1,  # of the tokens that occur: a tokenizer may know more than its model
        notes=tuple(text.notes),
        metrics=("perplexity",),
        longest=int(lengths[1:].max()) - 1,
    )


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the lines that are not blank, each after its place, such as "chats.jsonl:3"."""
    with path.open(encoding="utf-8-sig") as stream:
        try:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield f"{path}:{number}", line
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8: {error}") from error


def _source(config: PromptsConfig) -> Source:
    source = find_text(config.path, "*")
    if not source.root.is_file():
        raise UserError(f"data.path={config.path} is a folder: give one jsonl file")
    return source


def _key(config: PromptsConfig, source: Source) -> str:
    """Return the name of the tokens: it changes with the file, the tokenizer's files and the context."""
    if importlib.util.find_spec("transformers") is None:
        raise UserError(
            "data=prompts needs transformers: pip install 'transformers>=5.24' (Python 3.11 or newer)"
        )
    digest = hashlib.sha256()
    files = {
        file for pattern in _TOKENIZER for file in Path(config.tokenizer).glob(pattern) if file.is_file()
    }
    for file in sorted(files):
        digest.update(file.name.encode() + file.read_bytes())
    return token_key(source, f"{digest.hexdigest()}/prompts/{config.context}")
