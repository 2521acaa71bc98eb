"""The order of samples: passes, each a permutation; a pure function of seed and position."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.order import Order

lengths = st.integers(1, 50)
seeds = st.integers(0, 2**63)


@given(lengths, seeds, st.integers(0, 5))
def test_every_pass_is_a_permutation(length: int, seed: int, number: int) -> None:
    order = Order(length, seed).samples(number * length, length)
    assert sorted(order.tolist()) == list(range(length))


@given(lengths, seeds, st.integers(0, 200), st.lists(st.integers(1, 60), min_size=1, max_size=5))
def test_batches_join_without_gap_or_overlap(length: int, seed: int, start: int, sizes: list[int]) -> None:
    """Also where a batch spans two passes, whatever was requested before."""
    order = Order(length, seed)
    position, parts = start, []
    for size in sizes:
        parts.append(order.samples(position, size))
        position += size
    assert [len(part) for part in parts] == sizes
    whole = Order(length, seed).samples(start, sum(sizes))
    assert np.concatenate(parts).tolist() == whole.tolist()


def test_passes_and_seeds_differ() -> None:
    passes = Order(50, 0).samples(0, 100)
    assert passes[:50].tolist() != passes[50:].tolist()
    assert passes[:50].tolist() != Order(50, 1).samples(0, 50).tolist()
    assert passes[:50].tolist() != list(range(50))


def test_numbers_never_change() -> None:
    """Checkpoints rely on it: they store how many samples were trained on, not which."""
    assert Order(8, 0).samples(0, 8).tolist() == [2, 4, 1, 0, 6, 5, 7, 3]
