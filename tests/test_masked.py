"""Masked language modelling: which tokens are predicted, and by what they are replaced."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trainer.config.schema import TextConfig
from trainer.data.masked import IGNORED, Masked
from trainer.data.text import load, prepare
from trainer.errors import UserError

MASK, VOCABULARY, LENGTH = 50, 50, 100
TOKENS = torch.from_numpy(np.random.RandomState(0).randint(0, VOCABULARY, (400, LENGTH)))
ALL = np.arange(len(TOKENS))


class Samples:
    """The tokens."""

    def __len__(self) -> int:
        return len(TOKENS)

    def inputs(self, samples: Any) -> Any:
        return TOKENS[samples]

    targets = inputs


def masked(share: float = 0.15) -> Masked:
    return Masked(Samples(), share=share, mask=MASK, vocabulary=VOCABULARY, seed=0)


def test_shares() -> None:
    inputs, targets = masked().inputs(ALL), masked().targets(ALL)
    chosen = targets != IGNORED
    assert (chosen.sum(1) == 15).all()
    assert torch.equal(targets[chosen], TOKENS[chosen])
    assert torch.equal(inputs[~chosen], TOKENS[~chosen])
    number = int(chosen.sum())
    hidden = int((inputs == MASK).sum())
    kept = int((inputs[chosen] == TOKENS[chosen]).sum())
    assert hidden == pytest.approx(0.8 * number, abs=4 * (0.16 * number) ** 0.5)
    expected = 0.1 + 0.1 / VOCABULARY  # a random token may be the same
    assert kept == pytest.approx(expected * number, abs=4 * (0.09 * number) ** 0.5)
    assert chosen.float().mean(0).std() < 0.03  # no position is preferred


def test_a_sample_is_masked_alike_in_every_batch() -> None:
    data = masked()
    batch = np.array([7, 3, 300])
    assert torch.equal(data.inputs(batch), data.inputs(ALL)[batch])
    assert torch.equal(data.targets(batch), data.targets(ALL)[batch])
    assert torch.equal(data.inputs(batch), data.inputs(batch))
    assert not torch.equal(data.targets(batch)[0] == IGNORED, data.targets(batch)[1] == IGNORED)


def test_at_least_one_token() -> None:
    assert ((masked(0.001).targets(ALL) != IGNORED).sum(1) == 1).all()


def test_text(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("to be or not to be " * 400)
    config = TextConfig(
        path=str(tmp_path / "text.txt"), context=32, cache=str(tmp_path / "cache"), objective="masked"
    )
    prepare(config)
    data = load(config)
    assert data.vocabulary == 257
    inputs, targets = data.training.inputs(np.arange(9)), data.training.targets(np.arange(9))
    assert (inputs == 256).any()
    assert ((targets == IGNORED) | (targets < 256)).all()
    config.objective = "next"
    assert load(config).fingerprint != data.fingerprint
    assert load(config).vocabulary == 256


def test_a_tokenizer_without_a_mask(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: PLC0415

    path = tmp_path / "tokenizer.json"
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(path))
    (tmp_path / "text.txt").write_text("a b a b " * 400)
    config = TextConfig(
        path=str(tmp_path / "text.txt"),
        context=8,
        cache=str(tmp_path / "cache"),
        tokenizer=str(path),
        objective="masked",
    )
    prepare(config)
    with pytest.raises(UserError, match=r"data.objective=masked needs a token that masks others"):
        load(config)
