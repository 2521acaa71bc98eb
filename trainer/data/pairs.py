"""Pairs of segments: what BERT trains on (Devlin et al. 2018, appendix A.2, without the next-sentence task).

    [CLS] lines of a document [SEP] the lines that follow [SEP] [PAD] ...

A sample takes whole lines of one document until the context is full; some samples, a share `short`, take
fewer at random, so that a model also sees short ones. Between two of its lines, at random, the second segment
starts; a line alone is parted anywhere. Every token of the text is in exactly one sample. A batch is padded
to its longest sample.

The tokens and the lengths of the segments are written once per node (`tokens.py`).
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.activation import Activation
from trainer.config.data import PairsConfig
from trainer.data.dataset import Data
from trainer.data.files import find_text
from trainer.data.masked import Masked
from trainer.data.reading import ReadableFile, encoding_note, text_files
from trainer.data.text import MASK_SEED
from trainer.data.tokenizer import FileTokenizer, Marks, build_tokenizer
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

_MARKS = 3  # tokens of a sample that are not text
_LINES_PER_BATCH = 1 << 12
_BYTES_PER_LINE = 1 << 16  # a longer line is taken for several
_log = logging.getLogger(__name__)


class Pairs:
    """Samples of one or two segments, with tokens around them, padded to the longest of a batch.

    Args:
        tokens: The text's tokens.
        lengths: The lengths of every sample's first and second segment [samples, 2].
        start: The place of the first sample's text among the tokens.
        marks: The tokens around the text.
        named: Whether the inputs name each token's segment.
    """

    def __init__(
        self,
        tokens: NDArray[Any] | MappedTokens,
        lengths: NDArray[np.int64],
        start: int,
        marks: Marks,
        *,
        named: bool,
    ) -> None:
        self._tokens = tokens
        self._lengths = lengths
        self._ends = start + np.cumsum(lengths.sum(1))
        self._marks = marks
        self._named = named

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._lengths)

    def inputs(self, samples: NDArray[np.int64]) -> Activation:
        """Return int64 `input_ids`, `attention_mask` and, if named, `token_type_ids`, each [samples, time].

        The mask is 1 for tokens and 0 for padding. A type is 0 for the first segment with the marks around
        it, 1 for the second with the mark after it, and 0 for padding.
        """
        rows = [self._row(int(sample)) for sample in samples]
        shape = len(rows), max(len(tokens) for tokens, _ in rows)
        ids, types = np.full(shape, self._marks.padding, np.int64), np.zeros(shape, np.int64)
        mask = np.zeros(shape, np.int64)
        for number, (tokens, second) in enumerate(rows):
            ids[number, : len(tokens)] = tokens
            mask[number, : len(tokens)] = 1
            types[number, len(tokens) - second : len(tokens)] = 1
        named = {"token_type_ids": torch.from_numpy(types)} if self._named else {}
        return {"input_ids": torch.from_numpy(ids), **named, "attention_mask": torch.from_numpy(mask)}

    def targets(self, samples: NDArray[np.int64]) -> Activation:
        """Return the tokens, which are the targets where none are masked."""
        return self.inputs(samples)["input_ids"]

    def _row(self, sample: int) -> tuple[NDArray[np.int64], int]:
        """Return a sample's tokens, and how many of them belong to its second segment."""
        first, second = self._lengths[sample].tolist()
        end = int(self._ends[sample])
        text = self._tokens[end - first - second : end].astype(np.int64)
        marks = self._marks
        ends = [marks.end] if second else []
        row = [marks.start, *text[:first].tolist(), marks.end, *text[first:].tolist(), *ends]
        return np.array(row, np.int64), second + len(ends)


def segments(
    lines: Iterable[int | None], longest: int, short: float, generator: np.random.RandomState
) -> Iterator[tuple[int, int]]:
    """Yield the lengths of every sample's first and second segment, in the order of the text.

    Args:
        lines: The number of tokens of every line; None ends a document.
        longest: The largest number of tokens of a sample, without the marks.
        short: The share of samples that take fewer at random.
        generator: Draws.
    """
    pending: list[int] = []
    target = longest
    for length in chain(lines, [None]):
        pieces = [] if length is None else [min(longest, length - at) for at in range(0, length, longest)]
        for piece in pieces:
            if pending and sum(pending) + piece > target:
                yield _pair(pending, generator)
                pending, target = [], longest
            if not pending and generator.random_sample() < short:
                target = generator.randint(1, longest + 1)
            pending.append(piece)
        if length is None and pending:
            yield _pair(pending, generator)
            pending, target = [], longest


def _pair(lines: Sequence[int], generator: np.random.RandomState) -> tuple[int, int]:
    if len(lines) == 1:  # as long as the context, or a document alone
        lines = [1] * lines[0]
    cut = generator.randint(1, len(lines)) if len(lines) > 1 else 1
    return sum(lines[:cut]), sum(lines[cut:])


def prepare(config: PairsConfig) -> None:
    """Tokenise the text line by line, unless `config.cache` already has it; one rank of each node calls this.

    Raises:
        UserError: The text or the tokenizer cannot be read, or the cache cannot be written.
    """
    tokenizer, source, cache = build_tokenizer(config.tokenizer), _source(config), Path(config.cache)
    key = _key(config, tokenizer)
    if describe(cache, f"{key}-pairs") is not None and describe(cache, key) is not None:
        return
    prepare_cache(cache)
    _log.info("Tokenising %s (%d files, %.1f MB)", source.title, len(source.files), source.size / 1e6)
    files, notes = text_files(source, any_bytes=False)
    texts = [ReadableFile(file) for file in files]
    lines: list[int | None] = []  # their lengths; None ends a document

    def tokens() -> Iterator[NDArray[Any]]:
        for file in texts:
            for batch in _batches(file):
                for line, encoded in zip(batch, tokenizer.encode_lines(batch), strict=True):
                    blank = config.documents == "paragraphs" and not line.strip()
                    lines.append(None if blank else len(encoded))
                    yield np.array([] if blank else encoded, dtype=np.uint32)
            lines.append(None)
            file.check_unchanged()

    def all_notes() -> list[str]:
        wrong = {str(file.path): file.wrong_byte for file in texts if file.wrong_byte is not None}
        return [*notes, *encoding_note(wrong, source.title, len(texts), tokenizer.invalid)]

    write_tokens(cache, key, tokens(), _vocabulary(tokenizer), all_notes)
    pairs = segments(lines, config.context - _MARKS, config.short, np.random.RandomState(0))
    flat = np.array(list(pairs), dtype=np.uint32).reshape(-1)
    write_tokens(cache, f"{key}-pairs", [flat], config.context)


def load(config: PairsConfig) -> Data:
    """Return the samples, with masked tokens; the last fraction `config.validation` of them is held out.

    Raises:
        UserError: The text or the tokenizer cannot be read or lacks a token, the tokens were not prepared,
            or the text is too short.
    """
    tokenizer, source, cache = build_tokenizer(config.tokenizer), _source(config), Path(config.cache)
    key = _key(config, tokenizer)
    text, pairs = describe(cache, key), describe(cache, f"{key}-pairs")
    if text is None or pairs is None:
        raise not_cached(f"the tokens of {source.title}", cache)
    lengths = map_tokens(cache, f"{key}-pairs", pairs).all().astype(np.int64).reshape(-1, 2)
    held_out = round(len(lengths) * config.validation)
    cut = len(lengths) - held_out
    if not cut or not held_out:
        raise UserError(
            f"{source.title} is too short: {len(lengths)} samples of data.context={config.context} tokens, "
            f"of which data.validation={config.validation:g} leaves {cut} for training and {held_out} for "
            "validation: give a longer text or a smaller data.context"
        )
    tokens = map_tokens(cache, key, text)
    facts = [text.digest, pairs.digest, tokenizer.digest, config.validation, config.segments]
    facts += [config.masked, config.masking]
    return Data(
        training=_masked(tokens, lengths[:cut], 0, tokenizer, config, dynamic=config.masking == "dynamic"),
        validation=_masked(tokens, lengths[cut:], int(lengths[:cut].sum()), tokenizer, config),
        fingerprint=hashlib.sha256(json.dumps(facts).encode()).hexdigest(),
        vocabulary=_vocabulary(tokenizer),
        notes=(*source.notes, *text.notes),
        metrics=("accuracy",),
        longest=config.context,
    )


def example(config: PairsConfig, vocabulary: int | None = None) -> Data:
    """Return a few samples of zeros, with the types and shapes of the longest samples.

    Args:
        config: The data's.
        vocabulary: The number of distinct tokens; None: that of the tokenizer.
    """
    if vocabulary is None:
        vocabulary = _vocabulary(build_tokenizer(config.tokenizer))
    first = (config.context - _MARKS) // 2
    lengths = np.array([[first, config.context - _MARKS - first]] * 2)
    samples = Pairs(np.zeros(2 * config.context, np.uint8), lengths, 0, Marks(0, 0, 0), named=config.segments)
    return Data(samples, samples, "example", vocabulary=vocabulary, longest=config.context)


def _masked(
    tokens: MappedTokens,
    lengths: NDArray[np.int64],
    start: int,
    tokenizer: FileTokenizer,
    config: PairsConfig,
    *,
    dynamic: bool = False,
) -> Masked:
    marks, mask = _checked_marks(tokenizer, config)
    return Masked(
        Pairs(tokens, lengths, start, marks, named=config.segments),
        share=config.masked,
        mask=mask,
        vocabulary=tokenizer.vocabulary,
        seed=MASK_SEED,
        never=marks,
        dynamic=dynamic,
    )


def _checked_marks(tokenizer: FileTokenizer, config: PairsConfig) -> tuple[Marks, int]:
    if tokenizer.marks is None or tokenizer.mask is None:
        raise UserError(
            "data=pairs needs the tokens [CLS], [SEP], [PAD] and [MASK], or <s>, </s>, <pad> and <mask>, "
            f"and data.tokenizer={config.tokenizer} lacks one: add them as special tokens when it is trained"
        )
    return tokenizer.marks, tokenizer.mask


def _vocabulary(tokenizer: FileTokenizer) -> int:
    others: tuple[int, ...] = (*(tokenizer.marks or ()), tokenizer.mask or 0)
    return max(tokenizer.vocabulary, *(1 + other for other in others))


def _key(config: PairsConfig, tokenizer: FileTokenizer) -> str:
    """Return the name of the tokens, after checking that samples can hold any.

    Raises:
        UserError: The context has no room for two tokens, or the tokenizer lacks one.
    """
    _checked_marks(tokenizer, config)
    if config.context < _MARKS + 2:
        raise UserError(
            f"data.context={config.context} has no room for two segments: it must be {_MARKS + 2} or more"
        )
    how = f"{tokenizer.digest}/lines/{config.documents}/{config.context}/{config.short}"
    return token_key(_source(config), how)


def _source(config: PairsConfig) -> Any:
    return find_text(config.path, config.pattern)


def _batches(file: ReadableFile) -> Iterator[list[bytes]]:
    """Yield the lines of a file, many at a time."""
    with file.open("rb") as stream:
        lines = iter(lambda: stream.readline(_BYTES_PER_LINE), b"")
        while batch := list(islice(lines, _LINES_PER_BATCH)):
            yield batch
