"""A figure with its 95 % interval, and the intervals of proportions."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """`{value, low, high}`."""
        return {"value": self.value, "low": self.low, "high": self.high}


def wilson(hits: int, count: int) -> Interval:
    """A proportion with Wilson's score interval (1927); sound for small counts and near 0 and 1."""
    result = stats.binomtest(hits, count).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(hits / count, float(result.low), float(result.high))


def paired_drop(reference: np.ndarray, candidate: np.ndarray, *, confidence: float = CONFIDENCE) -> Interval:
    """Difference of two proportions over the same samples (reference minus candidate).

    bool arrays (samples,). The interval adds half an observation to each cell of the paired table
    (Agresti and Min 2005), so that it does not collapse when the models never disagree.
    """
    count = len(reference)
    lost = int(np.sum(reference & ~candidate))
    won = int(np.sum(~reference & candidate))
    centre = (lost - won) / (count + 2)
    spread = math.sqrt(max(lost + won + 1 - (lost - won) ** 2 / (count + 2), 0.0)) / (count + 2)
    half = float(stats.norm.ppf(0.5 + confidence / 2)) * spread
    return Interval((lost - won) / count, max(centre - half, -1.0), min(centre + half, 1.0))


def bootstrap_mean(values: np.ndarray, *, confidence: float = CONFIDENCE) -> Interval:
    """The mean of (samples,) numbers, with a BCa bootstrap interval (Efron 1987); same numbers, same interval."""
    mean = float(np.mean(values))
    if len(values) < 2 or np.ptp(values) == 0:
        return Interval(mean, mean, mean)
    found = stats.bootstrap(
        (values,), np.mean, n_resamples=2000, batch=100, confidence_level=confidence, method="BCa", rng=0
    ).confidence_interval
    return Interval(mean, float(found.low), float(found.high))
