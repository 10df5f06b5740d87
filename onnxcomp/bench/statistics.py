"""What may be said about noisy numbers: percentiles, intervals of ratios, fixed looks, verdicts.

Percentiles come with the exact interval of order statistics, which assumes nothing about the
distribution, and are refused where the sample is too small for one. Ratios are judged on their
logarithms, one number per round, by a t interval over rounds. A comparison is looked at several
times while it runs, so each look uses a smaller error rate (Pocock 1977: the same for each look),
and the error over all looks stays at 5 %.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import optimize, stats

#: rounds after which a comparison is judged
LOOKS: tuple[int, ...] = (8, 12, 20, 32)

#: error rate of everything reported here
ALPHA = 0.05

#: a smaller change than this is of no practical use
DELTA = 0.01

VERDICTS = ("faster", "slower", "equivalent", "undecided")


@dataclasses.dataclass(frozen=True)
class Percentile:
    """One percentile of a sample, or the reason why there is none.

    Attributes:
        value: an order statistic; None when not estimable.
        low, high: exact 95 % interval; None when not estimable.
        estimable: whether the sample is large enough for an interval.
        needed: how many samples it takes.
        samples: how many there are.
        maximum: the largest sample: all that is known where the percentile is not estimable.
    """

    value: float | None
    low: float | None
    high: float | None
    estimable: bool
    needed: int
    samples: int
    maximum: float

    def to_json(self) -> dict[str, Any]:
        """`{value, low, high, estimable, needed, samples, maximum}`."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """An estimated number with its interval: `value`, `low` and `high` in the same unit."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, Any]:
        """`{value, low, high}`."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Decision:
    """What the rounds so far allow to say about one candidate.

    Attributes:
        verdict: one of `VERDICTS`.
        speedup: reference time / candidate time, with the interval that holds at every look.
        aa: the same for a clone of the reference: 1 but for noise.
        aa_ok: whether the interval of the clone holds 1.
        reasons: why undecided; empty otherwise.
        alpha: error rate of this look.
    """

    verdict: str
    speedup: Estimate
    aa: Estimate
    aa_ok: bool
    reasons: tuple[str, ...]
    alpha: float

    def to_json(self) -> dict[str, Any]:
        """The keys of a comparison: speedup, verdict, aa {ratio, low, high, ok}, reasons, alpha."""
        return {
            "speedup": self.speedup.to_json(),
            "verdict": self.verdict,
            "aa": {"ratio": self.aa.value, "low": self.aa.low, "high": self.aa.high, "ok": self.aa_ok},
            "reasons": list(self.reasons),
            "alpha": self.alpha,
        }


@functools.cache
def samples_needed(share: float, confidence: float = 1 - ALPHA) -> int:
    """The smallest sample for which some pair of order statistics brackets the percentile.

    29 for p90, 59 for p95, 299 for p99 at 95 %: `share**n + (1 - share)**n <= 1 - confidence`.
    """
    if not 0 < share < 1:
        raise ValueError(f"a percentile lies between 0 and 1, not at {share}")
    count = 1
    while share**count + (1 - share) ** count > 1 - confidence:
        count += 1
    return count


def percentile(samples: Sequence[float] | np.ndarray, share: float, confidence: float = 1 - ALPHA) -> Percentile:
    """The percentile at `share` in (0, 1), with its exact order-statistic interval.

    The tails are equal where the sample allows it; near the minimum size the upper bound is the
    largest sample and the lower tail gets what is left. The samples count as independent: drift
    within a run makes the true interval wider.
    """
    ordered = np.sort(np.asarray(samples, dtype=np.float64))
    count, needed = len(ordered), samples_needed(share, confidence)
    if count == 0:
        raise ValueError("no samples")
    if count < needed:
        return Percentile(None, None, None, False, needed, count, float(ordered[-1]))
    low, high = _ranks(count, share, confidence)
    rank = min(max(math.ceil(share * count), 1), count)
    return Percentile(
        value=float(ordered[rank - 1]),
        low=float(ordered[low - 1]),
        high=float(ordered[high - 1]),
        estimable=True,
        needed=needed,
        samples=count,
        maximum=float(ordered[-1]),
    )


def _ranks(count: int, share: float, confidence: float) -> tuple[int, int]:
    """Ranks l < u (from 1) with P(X(l) <= percentile < X(u)) >= confidence; B ~ binomial(count, share).

    P(percentile < X(l)) = P(B < l) and P(X(u) <= percentile) = P(B >= u).
    """
    alpha = 1 - confidence
    below = stats.binom.cdf(np.arange(count + 1), count, share)

    def upper(tail: float) -> int | None:
        found = np.flatnonzero(1 - below[:count] <= tail)  # P(B >= u) for u = index + 1
        return int(found[0]) + 1 if len(found) else None

    def lower(tail: float) -> int | None:
        found = np.flatnonzero(below[:count] <= tail)  # P(B < l) for l = index + 1
        return int(found[-1]) + 1 if len(found) else None

    low, high = lower(alpha / 2), upper(alpha / 2)
    if high is None:
        high = count
        low = lower(alpha - share**count)
    elif low is None:
        low = 1
        high = upper(alpha - (1 - share) ** count)
    return low or 1, high or count


def outliers(samples: Sequence[float] | np.ndarray) -> int:
    """How many samples lie more than three interquartile ranges above the upper quartile. None is dropped."""
    array = np.asarray(samples, dtype=np.float64)
    lower, upper = np.quantile(array, [0.25, 0.75])
    return int(np.count_nonzero(array > upper + 3 * (upper - lower)))


def mean_interval(values: Sequence[float] | np.ndarray, alpha: float = ALPHA) -> Estimate:
    """Mean with its t interval, for independent values (two or more)."""
    array = np.asarray(values, dtype=np.float64)
    if len(array) < 2:
        raise ValueError("an interval needs two values or more")
    mean, half = float(array.mean()), _half_width(array, alpha)
    return Estimate(mean, mean - half, mean + half)


def ratio_interval(log_ratios: Sequence[float] | np.ndarray, alpha: float = ALPHA) -> Estimate:
    """Geometric mean of the rounds' ratios with its t interval (two rounds or more)."""
    logs = mean_interval(log_ratios, alpha)
    return Estimate(math.exp(logs.value), math.exp(logs.low), math.exp(logs.high))


@functools.cache
def look_alpha(looks: tuple[int, ...] = LOOKS, alpha: float = ALPHA) -> float:
    """The two-sided error rate of each look that makes `alpha` over all of them (Pocock 1977).

    The looks need not be equally spaced: the constant is found by integrating over the partial
    sums (Armitage, McPherson, Rowe 1969). For t statistics it is applied as a significance level
    (Jennison and Turnbull 2000, section 3.8).
    """
    if list(looks) != sorted(set(looks)) or not looks or looks[0] < 1:
        raise ValueError(f"looks must be increasing counts, not {looks}")
    bound = optimize.brentq(lambda c: _crossing(looks, c) - alpha, 1.0, 6.0, xtol=1e-8)
    return float(2 * stats.norm.sf(bound))


def equivalent(log_ratios: Sequence[float] | np.ndarray, delta: float = DELTA, alpha: float = ALPHA) -> bool:
    """Whether the ratio is within a factor of 1 + delta of 1, by two one-sided t tests (Schuirmann 1987)."""
    logs = np.asarray(log_ratios, dtype=np.float64)
    half = _half_width(logs, 2 * alpha)  # each side at alpha
    return bool(abs(logs.mean()) + half < math.log1p(delta))


def decide(
    log_ratios: Sequence[float] | np.ndarray,
    aa_log_ratios: Sequence[float] | np.ndarray,
    *,
    delta: float = DELTA,
    looks: tuple[int, ...] = LOOKS,
    alpha: float = ALPHA,
    candidates: int = 1,
) -> Decision:
    """Judge one candidate on the rounds so far.

    Args:
        log_ratios: log(reference time / candidate time), one per round.
        aa_log_ratios: the same for the clone of the reference.
        delta: practical threshold: a winner's whole interval lies beyond 1 + delta.
        looks: the round counts at which this is called at most.
        alpha: error rate over all looks and all candidates.
        candidates: how many candidates share the reference (Bonferroni).
    """
    each = look_alpha(looks, alpha / candidates)
    aa_each = look_alpha(looks, alpha)
    speedup, aa = ratio_interval(log_ratios, each), ratio_interval(aa_log_ratios, aa_each)
    aa_ok = aa.low <= 1 <= aa.high
    outcome, reasons = "undecided", []
    if not aa_ok:
        reasons.append(
            f"the A/A control failed: a clone of the reference measured {aa.value:.4f} "
            f"[{aa.low:.4f}, {aa.high:.4f}], which excludes 1; measure again on a quieter machine"
        )
    elif speedup.low > 1 + delta:
        outcome = "faster"
    elif speedup.high < 1 / (1 + delta):
        outcome = "slower"
    elif equivalent(log_ratios, delta, each):
        outcome = "equivalent"
    else:
        reasons.append(
            f"the interval [{speedup.low:.4f}, {speedup.high:.4f}] neither clears nor lies within "
            f"1 +- {delta:g}; measure longer, or on a quieter machine"
        )
    return Decision(outcome, speedup, aa, aa_ok, tuple(reasons), each)


def _half_width(values: np.ndarray, alpha: float) -> float:
    count = len(values)
    return float(stats.t.isf(alpha / 2, count - 1) * values.std(ddof=1) / math.sqrt(count))


def _crossing(looks: tuple[int, ...], bound: float) -> float:
    """P(|S(n)| > bound * sqrt(n) for some n of looks), S a standard normal random walk."""
    points = 401
    limit = bound * math.sqrt(looks[0])
    grid = np.linspace(-limit, limit, points)
    density = stats.norm.pdf(grid, scale=math.sqrt(looks[0]))
    for before, now in itertools.pairwise(looks):
        limit = bound * math.sqrt(now)
        after = np.linspace(-limit, limit, points)
        step = stats.norm.pdf(after[:, None] - grid[None, :], scale=math.sqrt(now - before))
        density = _simpson(step * density, grid)
        grid = after
    return float(1 - _simpson(density[None, :], grid)[0])


def _simpson(rows: np.ndarray, grid: np.ndarray) -> np.ndarray:
    weights = np.full(len(grid), 2.0)
    weights[1::2] = 4.0
    weights[[0, -1]] = 1.0
    area: np.ndarray = rows @ weights * (grid[1] - grid[0]) / 3
    return area
