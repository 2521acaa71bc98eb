"""Medians and how sure they are."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb


@dataclass(frozen=True)
class Interval:
    """A median and the interval that holds the true one with a probability of 95 % or more."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        """Return, say, `1.043 (1.037 .. 1.049)`."""
        return f"{self.median:.3f} ({self.low:.3f} .. {self.high:.3f})"


def median_interval(values: Sequence[float]) -> Interval:
    """Return the median of independent values with its 95 % interval, whatever their distribution.

    The true median lies between the k-th smallest and the k-th largest value unless fewer than k of them are
    on one of its sides, which a fair coin tells (Conover, "Practical Nonparametric Statistics", 3.2).
    Below six values no interval is that sure; then it is their whole range.
    """
    ordered, n = sorted(values), len(values)
    k = 0
    while sum(comb(n, below) for below in range(k + 1)) / 2**n <= 0.025:  # noqa: PLR2004
        k += 1
    k = max(k, 1)
    return Interval(statistics.median(ordered), ordered[k - 1], ordered[n - k])
