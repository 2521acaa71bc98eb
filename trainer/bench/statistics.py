"""Medians and their confidence intervals."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb


@dataclass(frozen=True)
class Interval:
    """A median, and an interval that contains the true median with a probability of at least 95 %."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        """Return a text such as `1.043 (1.037 .. 1.049)`."""
        return f"{self.median:.3f} ({self.low:.3f} .. {self.high:.3f})"


def median_interval(values: Sequence[float]) -> Interval:
    """Return the median of independent values with its 95 % interval, for any distribution.

    The true median lies between the k-th smallest and the k-th largest value unless fewer than k values are
    on one side of it. That probability is binomial, as for a fair coin (Conover, "Practical Nonparametric
    Statistics", 3.2). With fewer than six values no interval reaches 95 %; then it is their full range.
    """
    ordered, n = sorted(values), len(values)
    k = 0
    while sum(comb(n, below) for below in range(k + 1)) / 2**n <= 0.025:  # noqa: PLR2004
        k += 1
    k = max(k, 1)
    return Interval(statistics.median(ordered), ordered[k - 1], ordered[n - k])
