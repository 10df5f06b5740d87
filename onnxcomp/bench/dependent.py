"""Percentiles of successive numbers that depend on each other, as waiting times in a line do.

Who waits long is followed by others who wait long: a thousand such requests say as much as a few
hundred independent ones, or as a few dozen near saturation. An interval for independent samples would
be too narrow by the square root of that factor. Here the factor is estimated from the means of
batches of successive requests (Schmeiser 1982: 10 to 30 batches) of the indicator 'not above the
percentile' (Heidelberger and Lewis 1984), and the order statistics are those of a sample that is
smaller by the factor (Woodruff 1952). Where that small sample allows no interval, there is none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import optimize, special, stats

from onnxcomp.bench import statistics
from onnxcomp.bench.statistics import ALPHA, Percentile

#: of equal size, of successive samples
BATCHES = 20


def percentile(samples: Sequence[float] | np.ndarray, share: float) -> Percentile:
    """The percentile at `share` in (0, 1) with its 95 % interval.

    Args:
        samples: in the order of time, 40 or more for an interval.
        share: 0.99 for p99.

    Coverage in simulated M/M/1 lines: 92 to 97 % where the sample is three times what is needed or
    more, about 90 % just above that (`scripts/server_check`).
    """
    array = np.asarray(samples, dtype=np.float64)
    count, needed = len(array), statistics.samples_needed(share)
    if count == 0:
        raise ValueError("no samples")
    ordered = np.sort(array)
    factor = _factor(array, ordered, share) if count >= 2 * BATCHES else 1.0
    needed = max(math.ceil(needed * factor), 2 * BATCHES)
    if count < needed:
        return Percentile(None, None, None, False, needed, count, float(ordered[-1]))
    low, high = _ranks(count / factor, share)
    return Percentile(
        value=float(ordered[_rank(count, share) - 1]),
        low=float(ordered[max(math.floor(low * factor), 1) - 1]),
        high=float(ordered[min(math.ceil(high * factor), count) - 1]),
        estimable=True,
        needed=needed,
        samples=count,
        maximum=float(ordered[-1]),
    )


def inflation(samples: np.ndarray, share: float, *, batches: int = BATCHES) -> float:
    """Variance of 'the share of samples below the percentile', by that of independent samples; 1 or more."""
    array = np.asarray(samples, dtype=np.float64)
    rank = _rank(len(array), share) - 1
    return _inflation(array, float(np.partition(array, rank)[rank]), share, batches)


def _factor(samples: np.ndarray, ordered: np.ndarray, share: float) -> float:
    """The inflation, and a t factor for its being estimated from few batches."""
    found = _inflation(samples, float(ordered[_rank(len(samples), share) - 1]), share, BATCHES)
    return found * float(stats.t.isf(ALPHA / 2, BATCHES - 1) / stats.norm.isf(ALPHA / 2)) ** 2


def _inflation(samples: np.ndarray, at: float, share: float, batches: int) -> float:
    size = len(samples) // batches
    means = (samples[-size * batches :] <= at).reshape(batches, size).mean(axis=1)
    return max(float(size * means.var(ddof=1) / (share * (1 - share))), 1.0)


def _ranks(count: float, share: float) -> tuple[float, float]:
    """Real ranks l < u (from 1) whose order statistics bracket the percentile, for a count that is no integer.

    With B binomial: P(B < l) = 1 - I(share; l, count - l + 1) and P(B >= u) = I(share; u, count - u + 1), the
    incomplete beta function. Where the upper tail is too short for both, the largest sample is the bound.
    """
    tail, upper = ALPHA / 2, count
    if share**count < tail:
        upper = optimize.brentq(lambda u: special.betainc(u, count - u + 1, share) - tail, 1e-9, count)
    else:
        tail = ALPHA - share**count
    lower = optimize.brentq(lambda low: special.betaincc(low, count - low + 1, share) - tail, 1e-9, count)
    return float(lower), float(upper)


def _rank(count: int, share: float) -> int:
    """Of the order statistic (from 1) that stands for the percentile."""
    return min(max(math.ceil(share * count), 1), count)
