"""A small GPT on a small text, and runs of it that several tests look at."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.parallel.launch import launch
from tests.parallel.runs import Finished

# Everything at once that could come out differently in another layout: dropout, a tied head, an odd number
# of layers, a last micro-batch that is smaller, clipping, AdamW, a learning rate that changes.
GPT = [
    "model.blocks=3",
    "batch.global_size=15",
    "optimizer.clip=1.0",
    "train.steps=6",
    "eval.every=3",
    "checkpoint.every=3",
    "checkpoint.keep=0",
    "generate.tokens=12",
]

Trained = Callable[..., Finished]


@pytest.fixture(scope="session")
def small(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the overrides for a small GPT on a small text, tokenised once a session."""
    return [
        "experiment=small",
        f"data.path={text_file}",
        f"data.cache={tmp_path_factory.mktemp('cache')}",
        "run.dir=run",
        "threads=1",
        "device=cpu",
    ]


@pytest.fixture(scope="session")
def trained(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Return a function that trains the GPT on some ranks, once a session for the same arguments."""

    @cache
    def train(ranks: int, *overrides: str) -> Finished:
        folder = tmp_path_factory.mktemp("trained")
        result = launch(ranks, [*small, *GPT, *overrides], folder).check()
        return Finished(result, folder / "run")

    return train
