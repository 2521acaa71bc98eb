"""`python -m trainer.tokenize`: vocabularies, and tokens that a run then finds."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from tests.support.sentences import sentences
from trainer.config.schema import TokenizeConfig
from trainer.data.pieces import TextSource
from trainer.data.tokenizer import build_tokenizer
from trainer.errors import UserError
from trainer.tokenize.vocabulary import train_vocabulary


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., tokenizers.Tokenizer]:
    (tmp_path / "text").write_text(sentences(20_000))

    def run(**values: Any) -> tokenizers.Tokenizer:
        path = tmp_path / "made" / "tokenizer.json"
        config = TokenizeConfig(**{"train": str(path), "size": 350, **values})
        count = train_vocabulary([TextSource(str(tmp_path / "text"))], config)
        made = tokenizers.Tokenizer.from_file(str(path))
        assert made.get_vocab_size() == count <= config.size
        return made

    return run


def test_bytes_pair_up_and_nothing_is_unknown(
    train: Callable[..., tokenizers.Tokenizer], tmp_path: Path
) -> None:
    made = train(special=["<user>"])
    for text in ("The old king", "東京 été \x00 <user>\n\n"):
        assert made.decode(made.encode(text).ids, skip_special_tokens=False) == text
    assert len(made.encode(sentences(1000)).ids) < 500
    assert made.encode("<user>").ids == [made.token_to_id("<user>")]
    assert build_tokenizer(str(tmp_path / "made")).end == made.token_to_id("<|endoftext|>")


@pytest.mark.parametrize("lowercase", [True, False])
def test_word_pieces(lowercase: bool, train: Callable[..., tokenizers.Tokenizer], tmp_path: Path) -> None:
    made = train(kind="wordpiece", lowercase=lowercase)
    assert [made.token_to_id(name) for name in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")] == [
        0,
        1,
        2,
        3,
        4,
    ]
    encoded = made.encode("The old").tokens
    assert (encoded[0], encoded[-1]) == ("[CLS]", "[SEP]")
    assert ("the" in encoded) == lowercase
    built = build_tokenizer(str(tmp_path / "made"))
    assert (built.mask, built.end) == (4, 3)


def test_refusals(train: Callable[..., tokenizers.Tokenizer]) -> None:
    with pytest.raises(
        UserError, match=r"tokenize\.size=100 is too small: 257 tokens are there from the start"
    ):
        train(size=100)
    train()
    with pytest.raises(UserError, match=r"tokenize\.train=.* exists: give another file"):
        train()


def test_the_settings_of_a_folder_name_the_end(
    train: Callable[..., tokenizers.Tokenizer], tmp_path: Path
) -> None:
    made = train(special=["<stop>"])
    settings = tmp_path / "made" / "tokenizer_config.json"
    for value in ("<stop>", {"content": "<stop>"}):
        settings.write_text(json.dumps({"eos_token": value}))
        assert build_tokenizer(str(tmp_path / "made")).end == made.token_to_id("<stop>")
    settings.write_text("{")
    assert build_tokenizer(str(tmp_path / "made")).end == made.token_to_id("<|endoftext|>")
