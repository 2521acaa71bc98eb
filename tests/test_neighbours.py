"""What neighbours tell about a masked token, against counting by hand."""

from collections import Counter, defaultdict

import numpy as np
import pytest

from trainer.bench.neighbours import Neighbours, accuracies
from trainer.data.dataset import Data
from trainer.data.masked import IGNORED, Masked
from trainer.data.text import Windows
from trainer.errors import UserError

SIZE, TIME = 5, 12


def likeliest(counts: Counter[int]) -> int:
    return min(counts, key=lambda token: (-counts[token], token))


def test_predictions() -> None:
    generator = np.random.RandomState(0)
    seen, asked = generator.randint(0, SIZE, (9, TIME)), generator.randint(0, SIZE, (50, TIME))
    both: defaultdict[tuple[int, int], Counter[int]] = defaultdict(Counter)
    left: defaultdict[int, Counter[int]] = defaultdict(Counter)
    for row in seen.tolist():
        padded = [-1, *row, -1]
        for before, token, after in zip(padded, padded[1:], padded[2:], strict=False):
            both[before, after][token] += 1
            left[before][token] += 1
    predicted = Neighbours(seen, SIZE).predict(asked)
    unseen = 0
    for row, answers in zip(asked.tolist(), predicted.tolist(), strict=True):
        padded = [-1, *row, -1]
        for before, after, answer in zip(padded, padded[2:], answers, strict=False):
            unseen += (before, after) not in both
            assert answer == likeliest(both.get((before, after)) or left[before])
    assert unseen


def test_accuracies() -> None:
    tokens = np.tile(np.array([0, 1, 2, 1], dtype=np.uint8), 100)
    windows = Windows(tokens, 16)
    samples = Masked(windows, share=0.5, mask=4, vocabulary=4, seed=0)
    given, common, number = accuracies(Data(samples, samples, "", vocabulary=5), 10)
    assert number == 80
    targets = samples.targets(np.arange(10)).numpy()
    chosen = targets != IGNORED
    assert common == (targets[chosen] == 1).mean()
    # Between two ones a two is likelier than a zero, of which each sample has one at its start.
    known = (targets != 0) | (np.arange(16) == 0)
    assert given == known[chosen].mean() < 1
    with pytest.raises(UserError, match="this data masks no tokens"):
        accuracies(Data(windows, windows, "", vocabulary=4), 10)
