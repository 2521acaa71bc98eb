"""Error rates against counts by hand and a brute-force distance."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.errors import UserError
from trainer.models.error_rates import character_error_rate, distance, greedy, word_error_rate


def brute_force(one: str, other: str) -> int:
    """Return the least cost of all alignments, tried one by one."""
    if not one or not other:
        return len(one) + len(other)
    changed = brute_force(one[1:], other[1:]) + (one[0] != other[0])
    return min(changed, brute_force(one[1:], other) + 1, brute_force(one, other[1:]) + 1)


def test_the_distance_is_the_least_of_all_alignments() -> None:
    texts = ["".join(text) for length in range(4) for text in itertools.product("ab", repeat=length)]
    for one, other in itertools.product(texts, ["", "a", "abba", "bab"]):
        assert distance(one, other) == brute_force(one, other)


def written(*tokens: list[int]) -> dict[str, Tensor]:
    """Return an output whose likeliest tokens are these; what follows an utterance's length is noise."""
    longest = max(map(len, tokens))
    padded = torch.tensor([[*each, *[3] * (longest - len(each))] for each in tokens])
    return {"logits": F.one_hot(padded, 6).float(), "lengths": torch.tensor([len(each) for each in tokens])}


def said(*tokens: list[int]) -> dict[str, Tensor]:
    longest = max(map(len, tokens))
    padded = torch.tensor([[*each, *[0] * (longest - len(each))] for each in tokens])
    return {"letters": padded, "lengths": torch.tensor([len(each) for each in tokens])}


def test_repetitions_then_blanks_are_removed() -> None:
    assert greedy(written([0, 2, 2, 0, 2, 3, 3, 0])["logits"][0]) == [2, 2, 3]


def test_rates_by_hand() -> None:
    """The space is 1. Said: "23 4" and "5"; written: "23 5" and, too much, "5 2"."""
    output = written([2, 2, 0, 3, 1, 1, 5], [5, 0, 1, 2])
    target = said([2, 3, 1, 4], [5])
    assert word_error_rate(output, target) == (2, 3)  # one changed, one inserted
    assert character_error_rate(output, target) == (3, 5)  # one changed, a space and a letter inserted


def test_spaces_around_words_are_no_words() -> None:
    assert word_error_rate(written([1, 2, 1, 0, 1, 3, 1]), said([2, 1, 3])) == (0, 2)


def test_what_is_no_speech_is_refused() -> None:
    with pytest.raises(UserError, match="model=speech"):
        word_error_rate(torch.zeros(2, 3), torch.zeros(2))
