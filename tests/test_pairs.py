"""Pairs of segments: which text they hold, their marks, padding and masks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.config.data import PairsConfig
from trainer.data.dataset import Data
from trainer.data.masked import IGNORED, Masked
from trainer.data.pairs import example, load, prepare, segments
from trainer.errors import UserError

MASK, START, END, PAD = 256, 257, 258, 259
LINES = [b"to be, or not\n", b"to be\n", b"\n", b"that is\n", b"the question: " * 5 + b"\n", b"whether\n"]
TEXT = b"".join(LINES) * 12


def loaded(folder: Path, texts: Sequence[bytes] = (TEXT,), **options: Any) -> Data:
    (folder / "text").mkdir(exist_ok=True)
    for number, text in enumerate(texts):
        (folder / "text" / f"{number}.txt").write_bytes(text)
    given = {"context": 40, "validation": 0.2, "cache": str(folder / "cache"), **options}
    config = PairsConfig(path=str(folder / "text"), **given)
    prepare(config)
    return load(config)


@given(
    st.lists(st.lists(st.integers(0, 30), min_size=1), max_size=6),
    st.integers(2, 20),
    st.sampled_from([0.0, 0.3, 1.0]),
)
def test_every_token_is_in_one_sample(documents: list[list[int]], longest: int, short: float) -> None:
    lines = [length for document in documents for length in (*document, None)]
    pairs = list(segments(lines, longest, short, np.random.RandomState(1)))
    assert all(first > 0 and second >= 0 and first + second <= longest for first, second in pairs)
    ends = set(np.cumsum([sum(document) for document in documents]).tolist()) - {0}
    assert ends <= set(np.cumsum([sum(pair) for pair in pairs]).tolist())  # no sample has two documents
    if short == 0:  # then samples are as long as whole lines allow
        assert len(pairs) == sum(map(len, (greedy(document, longest) for document in documents)))


def greedy(lines: Sequence[int], longest: int) -> list[int]:
    """Return the lengths of the samples of a document: a naive packing of its lines."""
    samples: list[int] = []
    room = 0
    for line in lines:
        left = line
        while left:
            piece = min(left, longest)
            if piece > room:
                samples.append(0)
                room = longest
            samples[-1] += piece
            room -= piece
            left -= piece
    return samples


def test_samples(tmp_path: Path) -> None:
    data = loaded(tmp_path)
    assert isinstance(data.training, Masked)
    assert data.vocabulary == 260
    starts = {0, *np.cumsum([len(line) for line in LINES * 12]).tolist()}
    text, between = b"", 0
    for part in (data.training, data.validation):
        assert isinstance(part, Masked)
        for sample in range(len(part)):
            inputs = part.original.inputs(np.array([sample]))
            (tokens,), (types,), (mask,) = (
                inputs[name].numpy() for name in ("input_ids", "token_type_ids", "attention_mask")
            )
            assert mask.all()
            assert tokens[0] == START
            assert tokens[-1] == END
            (ends,) = np.nonzero(tokens == END)
            assert types.tolist() == [0] * (ends[0] + 1) + [1] * (len(tokens) - ends[0] - 1)
            first, second = bytes(tokens[1 : ends[0]].tolist()), bytes(tokens[ends[0] + 1 : -1].tolist())
            assert first
            assert second
            inside = set(range(len(text) + 1, len(text) + len(first + second)))
            assert len(text + first) in starts or not inside & starts  # a line alone is parted anywhere
            between += len(text + first) in starts
            text += first + second
    assert text == TEXT
    assert between > 10


def test_batches_are_padded(tmp_path: Path) -> None:
    samples = loaded(tmp_path).validation
    assert isinstance(samples, Masked)
    every = np.arange(len(samples))
    together, targets = samples.inputs(every), samples.targets(every)
    lengths = together["attention_mask"].sum(1).tolist()
    assert len(set(lengths)) > 1
    assert max(lengths) == together["input_ids"].shape[1] == targets.shape[1]
    for sample, length in enumerate(lengths):
        alone = samples.inputs(every[[sample]])
        for name, padding in (("input_ids", PAD), ("token_type_ids", 0), ("attention_mask", 0)):
            row = together[name][sample]
            assert torch.equal(row[:length], alone[name][0])
            assert (row[length:] == padding).all()
        assert torch.equal(targets[sample, :length], samples.targets(every[[sample]])[0])
        assert (targets[sample, length:] == IGNORED).all()
    chosen = targets != IGNORED
    original = samples.original.inputs(every)["input_ids"]
    assert (original[chosen] < 256).all()  # marks and padding are never predicted
    assert chosen.sum(1).tolist() == [max(1, round(0.15 * int(number))) for number in (original < 256).sum(1)]


def test_documents(tmp_path: Path) -> None:
    def number(texts: Sequence[bytes], **options: Any) -> int:
        data = loaded(tmp_path, texts, short=0.0, context=400, validation=0.4, **options)
        return len(data.training) + len(data.validation)

    assert number([b"a\n\nb\n", b"c\nd\n"]) == 2
    assert number([b"a\n\nb\n", b"c\nd\n"], documents="paragraphs") == 3


def test_dynamic_masks(tmp_path: Path) -> None:
    """They follow the seed that the engine sets for a micro-batch, alike for inputs and targets."""
    data = loaded(tmp_path)
    batch = np.arange(4)

    def read(part: Any, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        np.random.seed(seed)
        inputs = part.inputs(batch)["input_ids"]
        np.random.seed(seed)
        return inputs, part.targets(batch)

    for part, dynamic in ((data.training, True), (data.validation, False)):
        (inputs, targets), again, other = read(part, 1), read(part, 1), read(part, 2)
        assert torch.equal(inputs, again[0])
        assert torch.equal(targets, again[1])
        assert torch.equal(targets, other[1]) != dynamic
        assert (targets[inputs == MASK] != IGNORED).all()
    static = loaded(tmp_path, masking="static")
    assert static.fingerprint != data.fingerprint
    assert torch.equal(read(static.training, 1)[1], read(static.training, 2)[1])


def test_without_segments(tmp_path: Path) -> None:
    data = loaded(tmp_path, segments=False)
    assert list(data.training.inputs(np.arange(2))) == ["input_ids", "attention_mask"]


def test_the_example_has_the_shapes_of_the_data(tmp_path: Path) -> None:
    made = example(PairsConfig(context=40, cache=str(tmp_path)))
    assert made.vocabulary == 260
    inputs = made.training.inputs(np.arange(2))
    assert {name: tuple(tensor.shape) for name, tensor in inputs.items()} == dict.fromkeys(inputs, (2, 40))
    assert inputs.keys() == loaded(tmp_path).training.inputs(np.arange(2)).keys()


def test_word_pieces(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers  # noqa: PLC0415

    library = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    library.normalizer = normalizers.BertNormalizer()
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    library.train_from_iterator(
        [TEXT.decode()], trainers.WordPieceTrainer(vocab_size=60, special_tokens=special)
    )
    library.save(str(tmp_path / "tokenizer.json"))
    data = loaded(tmp_path, tokenizer=str(tmp_path / "tokenizer.json"))
    assert isinstance(data.validation, Masked)
    inputs = data.validation.original.inputs(np.arange(len(data.validation)))
    assert (inputs["input_ids"][:, 0] == 2).all()
    assert ((inputs["input_ids"] == 0) == (inputs["attention_mask"] == 0)).all()
    assert data.vocabulary == library.get_vocab_size()

    bare = Tokenizer(models.WordLevel({"a": 0, "[MASK]": 1}, unk_token="a"))
    bare.save(str(tmp_path / "bare.json"))
    with pytest.raises(UserError, match=r"data=pairs needs the tokens \[CLS\], \[SEP\]"):
        loaded(tmp_path, tokenizer=str(tmp_path / "bare.json"))


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is too short: 1 samples of data.context=40 tokens"):
        loaded(tmp_path, [b"short\n"], validation=0.3)
    with pytest.raises(UserError, match=r"data.context=4 has no room for two segments: it must be 5 or more"):
        loaded(tmp_path, context=4)
