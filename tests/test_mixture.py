"""Mixtures of text: exact proportions, pure functions of seed and position, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.config.schema import TextConfig
from trainer.data.build import load_data
from trainer.data.dataset import Data
from trainer.data.mixture import Mixture, Shares
from trainer.data.order import order_of
from trainer.data.text import Windows
from trainer.errors import UserError

LETTERS = ("a", "b", "c")


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Data]:
    """Three sources, each of one letter, of 4,000, 400 and 4,000 bytes."""
    for letter, size in zip(LETTERS, (4000, 400, 4000), strict=True):
        (tmp_path / f"{letter}.txt").write_text(letter * size)

    def run(*entries: Any, **values: Any) -> Data:
        fields = {"context": 4, "validation": 0.2, "cache": str(tmp_path / "cache"), **values}
        mixture = [
            {**each, "path": str(tmp_path / each["path"])} if "path" in each else each for each in entries
        ]
        return load_data(TextConfig(mixture=mixture, **fields))

    return run


def letters(part: Any, samples: Any) -> str:
    tokens = part.inputs(samples)
    assert (tokens == tokens[:, :1]).all()
    return bytes(tokens[:, 0].tolist()).decode()


def test_the_proportions_are_exact(build: Callable[..., Data]) -> None:
    data = build(
        {"path": "a.txt", "weight": 5}, {"path": "b.txt", "weight": 3}, {"path": "c.txt", "weight": 2}
    )
    order = order_of(data.training, 1)
    seen = letters(data.training, order.samples(0, 20_600))
    assert [seen.count(letter) for letter in LETTERS] == [10_300, 6_180, 4_120]
    assert seen[:200].count("b") > 20  # mixed, and not one source after another
    assert letters(data.training, order_of(data.training, 2).samples(0, 200)) != seen[:200]
    held_out = letters(data.validation, np.arange(len(data.validation)))
    assert held_out.count("b") == 19  # all of it; the others in proportion
    assert 15 < held_out.count("a") < 50


@settings(deadline=None, max_examples=50)
@given(
    weights=st.lists(st.sampled_from([1, 2, 3, 0.5, 0.25, 0.1]), min_size=1, max_size=4),
    position=st.integers(0, 5000),
    count=st.integers(1, 50),
)
def test_any_position_continues_the_whole(weights: list[float], position: int, count: int) -> None:
    parts = [Windows(np.arange(4 * length + 1) + 1000 * length, 4) for length in range(5, 5 + len(weights))]
    order = Mixture(parts, weights).order(3)
    whole = order.samples(0, position + count)
    assert np.array_equal(order.samples(position, count), whole[position:])


def test_each_source_comes_in_whole_passes() -> None:
    parts = [Windows(np.arange(4 * length + 1), 4) for length in (7, 300)]
    numbers = Mixture(parts, [1, 1]).order(0).samples(0, 2048)
    first = numbers[numbers < 7]
    assert all(sorted(first[i : i + 7]) == list(range(7)) for i in range(0, len(first) - 7, 7))


def test_a_block_has_the_counts_of_the_weights() -> None:
    shares = Shares([0.7, 0.2, 0.1], 0)
    for start in range(0, 5 * shares.block, shares.block):
        counts = np.bincount(shares.sources(start, shares.block))
        assert counts.tolist() == [7 * shares.block // 10, 2 * shares.block // 10, shares.block // 10]


@pytest.mark.parametrize(
    ("entries", "values", "message"),
    [
        ([{"weight": 1}], {}, r"data\.mixture\.0=\{'weight': 1\} must name a path"),
        ([{"path": "a.txt", "wieght": 1}], {}, r"no key data\.mixture\.0\.wieght; did you mean weight\?"),
        ([{"path": "a.txt", "weight": 0}], {}, r"data\.mixture\.0\.weight=0 must be a number greater than 0"),
        ([{"path": "a.txt", "format": "csv"}], {}, r"data\.mixture\.0\.format=csv is not one of auto, text"),
        ([{"path": "a.txt"}], {"path": "x"}, r"data\.path and data\.mixture cannot both be given"),
    ],
)
def test_refusals(entries: list[Any], values: Any, message: str, build: Callable[..., Data]) -> None:
    with pytest.raises(UserError, match=message):
        build(*entries, **values)
