"""From a histogram of an activation to the range that eight bits stand for."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from onnxcomp.activations import Histogram

#: (low, high) in float64, with low <= 0 <= high: ORT needs a zero that is exact
Ends = tuple[float, float]

_LEVELS = 256

#: shares of the exact ends that are tried, and how often both ends are gone over
_SHARES = np.linspace(0.02, 1.0, 99)
_ROUNDS = 2

#: share of the values that the percentile range holds on either side
_PERCENTILE = 0.99999


def minmax(histogram: Histogram) -> Ends:
    """The smallest and the largest value."""
    return min(histogram.low, 0.0), max(histogram.high, 0.0)


def percentile(histogram: Histogram, share: float = _PERCENTILE) -> Ends:
    """What leaves out 1 - share of the values at either end."""
    centers, counts = histogram.occupied()
    low, high = minmax(histogram)
    if not counts.size:
        return low, high
    total = counts.sum()
    below = np.cumsum(counts)
    # the bins in which the two quantiles lie; their outer edges are the ends
    half = (centers[1] - centers[0]) / 2 if len(centers) > 1 else 0.0
    first = centers[np.searchsorted(below, (1 - share) * total, side="right").clip(max=len(centers) - 1)] - half
    last = centers[np.searchsorted(below, share * total).clip(max=len(centers) - 1)] + half
    return min(max(first, low), 0.0), max(min(last, high), 0.0)


def mse(histogram: Histogram) -> Ends:
    """The range with the smallest mean square error of a value, rounding and saturation together.

    After Banner, Nahshan and Soudry 2019 (arXiv:1810.05723), searched instead of modelled.
    """
    centers, counts = histogram.occupied()
    weight = counts / max(counts.sum(), 1)

    def error(low: float, high: float) -> float:
        restored = _restore(_level(centers, low, high), low, high)
        return float(weight @ (restored - centers) ** 2)

    return _search(minmax(histogram), error)


def entropy(histogram: Histogram) -> Ends:
    """The range whose 256 levels tell most about the distribution: the smallest Kullback-Leibler divergence.

    After Migacz 2017 (8-bit inference with TensorRT), for asymmetric ranges: values beyond an end are counted
    at the end, and each level's count is spread evenly over its bins that hold values.
    """
    centers, counts = histogram.occupied()
    total = max(counts.sum(), 1)

    def divergence(low: float, high: float) -> float:
        inside = (centers >= low) & (centers <= high)
        if not inside.any():
            return np.inf
        first, last = np.flatnonzero(inside)[[0, -1]]
        clipped = counts[first : last + 1].astype(np.float64)
        held = clipped > 0
        level = _level(centers[first : last + 1], low, high).astype(np.intp)
        sums = np.bincount(level, clipped, _LEVELS)
        bins = np.bincount(level[held], minlength=_LEVELS)
        clipped[0] += counts[:first].sum()
        clipped[-1] += counts[last + 1 :].sum()
        spread = (sums / np.maximum(bins, 1))[level]
        held = clipped > 0
        p, q = clipped[held] / total, np.maximum(spread[held], 0.5) / max(sums.sum(), 1)
        return float(p @ np.log(p / q))

    return _search(minmax(histogram), divergence)


METHODS: Mapping[str, Callable[[Histogram], Ends]] = {
    "minmax": minmax,
    "percentile": percentile,
    "entropy": entropy,
    "mse": mse,
}


def _search(ends: Ends, loss: Callable[[float, float], float]) -> Ends:
    """The best pair of ends inside the given ones, one end after the other."""
    low, high = ends
    best = loss(low, high) if high > low else 0.0
    if high <= low:
        return ends
    for _ in range(_ROUNDS):
        before = best
        for share in _SHARES:
            found = loss(low, ends[1] * share) if ends[1] > 0 else np.inf
            if found < best:
                best, high = found, ends[1] * share
        for share in _SHARES:
            found = loss(ends[0] * share, high) if ends[0] < 0 else np.inf
            if found < best:
                best, low = found, ends[0] * share
        if best == before:
            break
    return low, high


def _level(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """The level 0..255 of each value, as QuantizeLinear gives it."""
    scale = (high - low) / (_LEVELS - 1)
    level: np.ndarray = np.clip(np.rint(values / scale) + np.rint(-low / scale), 0, _LEVELS - 1)
    return level


def _restore(level: np.ndarray, low: float, high: float) -> np.ndarray:
    scale = (high - low) / (_LEVELS - 1)
    restored: np.ndarray = (level - np.rint(-low / scale)) * scale
    return restored
