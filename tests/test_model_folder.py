"""What data takes from the folder of `model=hf`: how long samples are, and the tokenizer."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.configs import composed
from trainer.config.compose import typed
from trainer.config.model_folder import positions
from trainer.config.schema import TextConfig


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"n_positions": 256}, 256),
        ({"max_position_embeddings": 131072}, 1024),
        ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "bloom"}, 1024),
        ([], 1024),
    ],
)
def test_positions(content: Any, expected: int, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert positions(tmp_path) == expected


def test_nothing_to_look_at(tmp_path: Path) -> None:
    assert positions(tmp_path) == positions(None) == 1024


def test_the_command_line_follows_the_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"n_positions": 64}))
    model = ["train.steps=1", "model=hf", f"model.path={tmp_path}"]

    def data(*overrides: str) -> tuple[int, str]:
        config = typed(composed(*model, *overrides)).data
        assert isinstance(config, TextConfig)
        return config.context, config.tokenizer

    assert data() == (64, "bytes")
    (tmp_path / "tokenizer.json").write_text("{}")
    assert data() == (64, str(tmp_path))
    assert data("data.context=32", "data.tokenizer=bytes") == (32, "bytes")
    gpt = typed(composed("train.steps=1")).data
    assert isinstance(gpt, TextConfig)
    assert (gpt.context, gpt.tokenizer) == (128, "bytes")
