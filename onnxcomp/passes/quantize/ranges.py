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

#: for entropy: bins that are taken together, and the largest share of the values beyond either end
_MERGED = 4
_LEFT_OUT = 1e-4


def minmax(histogram: Histogram) -> Ends:
    """The smallest and the largest value."""
    return min(histogram.low, 0.0), max(histogram.high, 0.0)


def percentile(histogram: Histogram, share: float = _PERCENTILE) -> Ends:
    """What leaves out 1 - share of the values at either end, give or take a bin."""
    centers, counts = histogram.occupied()
    low, high = minmax(histogram)
    if not counts.size:
        return low, high
    total = counts.sum()
    below = np.cumsum(counts)
    # the bins in which the two quantiles lie; their outer edges are the ends
    half = histogram.width / 2
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
        # not a product of vectors: BLAS sums in an order that depends on the number of threads
        return float((weight * (restored - centers) ** 2).sum())

    return _search(minmax(histogram), error)


def entropy(histogram: Histogram) -> Ends:
    """The range whose 256 levels tell most about the distribution: the smallest Kullback-Leibler divergence.

    After Migacz 2017 (8-bit inference with TensorRT), for asymmetric ranges: values beyond an end are counted
    at the end, and each level's count is spread evenly over its bins that hold values. Two things keep it from
    cutting off what matters. Zero is exact in any range: its bin, which holds half of all values behind a Relu,
    counts no more than its neighbours. And at either end at most one value in 10,000 is left out: spikes, as
    padding makes them, look like information that only the finest levels keep.
    """
    ends = minmax(histogram)
    counts = histogram.counts.reshape(-1, _MERGED).sum(1)
    zero = len(counts) // 2
    counts[zero] = min(counts[zero], max(counts[zero - 1], counts[zero + 1]))
    held = np.flatnonzero(counts)
    if not held.size:
        return ends
    width = histogram.width * _MERGED
    # the lower edge of each bin
    edges = (np.arange(held[0], held[-1] + 1) - zero) * width
    counts = counts[held[0] : held[-1] + 1]
    total = int(counts.sum())

    def divergence(low: float, high: float) -> float:
        inside = np.flatnonzero((edges + width >= low) & (edges <= high))
        if not inside.size:
            return np.inf
        first, last = inside[0], inside[-1]
        below, above = int(counts[:first].sum()), int(counts[last + 1 :].sum())
        if max(below, above) > _LEFT_OUT * total:
            return np.inf
        clipped = counts[first : last + 1].astype(np.float64)
        level = _level(edges[first : last + 1] + width / 2, low, high).astype(np.intp)
        bins = np.bincount(level, clipped > 0, _LEVELS)
        spread = np.where(clipped > 0, (np.bincount(level, clipped, _LEVELS) / np.maximum(bins, 1))[level], 0)
        clipped[0] += below
        clipped[-1] += above
        there = clipped > 0
        p, q = clipped[there] / total, np.maximum(spread[there], 0.5) / (total - below - above)
        return float((p * np.log(p / q)).sum())

    return _search(ends, divergence)


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
