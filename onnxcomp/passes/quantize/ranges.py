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
    if not histogram.width:
        return minmax(histogram)
    centers = centers / histogram.width
    weight = counts / counts.sum()
    # of the bins before each one: their weight, and its product with their values
    weights, products = _before(weight), _before(weight * centers)
    square = (weight * centers**2).sum()

    def errors(low: np.ndarray, high: np.ndarray) -> np.ndarray:
        scale, zero_point = _grid(low, high)
        cuts = _cuts(scale, zero_point, centers[0]).clip(0, len(centers))
        restored = (np.arange(_LEVELS) - zero_point) * scale
        inside = np.diff(weights[cuts]) * restored - 2 * np.diff(products[cuts])
        error: np.ndarray = square + (restored * inside).sum(1)
        return error

    return _search(minmax(histogram), histogram.width, errors)


def entropy(histogram: Histogram) -> Ends:
    """The range whose 256 levels tell most about the distribution: the smallest Kullback-Leibler divergence.

    After Migacz 2017 (8-bit inference with TensorRT), for asymmetric ranges: values beyond an end are counted
    at the end, and each level's count is spread evenly over its bins that hold values. Two things keep it from
    cutting off what matters. Zero is exact in any range: its bin, which holds half of all values behind a Relu,
    counts no more than its neighbours. And at either end at most one value in 10,000 is left out: spikes, as
    padding makes them, look like information that only the finest levels keep.
    """
    counts = histogram.counts.reshape(-1, _MERGED).sum(1)
    zero = len(counts) // 2
    counts[zero] = min(counts[zero], max(counts[zero - 1], counts[zero + 1]))
    held = np.flatnonzero(counts)
    if not held.size:
        return minmax(histogram)
    start = int(held[0]) - zero
    counts = counts[held[0] : held[-1] + 1]
    total = counts.sum()
    before, held_before, told_before = _before(counts), _before(counts > 0), _before(_xlogx(counts))

    def divergences(low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """The sum of p log(p / q) over bins, from sums over levels: q is one per level."""
        first = np.ceil(low - 1).astype(int).clip(start) - start
        last = np.floor(high).astype(int).clip(max=start + len(counts) - 1) - start
        possible = first < last
        first, last = np.where(possible, first, 0), np.where(possible, last, len(counts) - 1)
        below, above = before[first], total - before[last + 1]
        possible &= np.maximum(below, above) <= _LEFT_OUT * total
        cuts = _cuts(*_grid(low, high), start + 0.5).clip(first[:, None], last[:, None] + 1)
        inside = np.diff(before[cuts])
        spread = inside / np.maximum(np.diff(held_before[cuts]), 1)
        own = told_before[last + 1] - told_before[first]
        kept = (inside * np.log(np.maximum(spread, 0.5))).sum(1)
        for end, beyond in ((first, below), (last, above)):
            level = (cuts[:, 1:-1] <= end[:, None]).sum(1)
            there = np.where(counts[end] > 0, np.take_along_axis(spread, level[:, None], 1)[:, 0], 0.5)
            own += _xlogx(counts[end] + beyond) - _xlogx(counts[end])
            kept += beyond * np.log(there)
        told = (own - kept) / total + np.log((total - below - above) / total)
        # without the rounding of sums, so that the shortest wins of ranges that lose nothing
        found: np.ndarray = np.where(possible, told.round(12), np.inf)
        return found

    return _search(minmax(histogram), histogram.width * _MERGED, divergences)


METHODS: Mapping[str, Callable[[Histogram], Ends]] = {
    "minmax": minmax,
    "percentile": percentile,
    "entropy": entropy,
    "mse": mse,
}


def _search(ends: Ends, width: float, losses: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Ends:
    """The best pair of ends inside the given ones, one end after the other.

    `losses` takes the two ends of some candidates, (candidates,) each, and gives (candidates,); its unit of
    length is `width`.
    """
    if ends[0] >= ends[1]:
        return ends
    best = list(ends)
    least = losses(*(np.array([end / width]) for end in ends))[0]
    for turn in range(2 * _ROUNDS):
        end = 1 - turn % 2
        if ends[end]:
            tried = ends[end] * _SHARES
            fixed = np.full_like(tried, best[1 - end] / width)
            found = losses(fixed, tried / width) if end else losses(tried / width, fixed)
            at = int(found.argmin())
            if found[at] < least:
                least, best[end] = found[at], float(tried[at])
                continue
        if turn:
            break  # the other end would be searched as it was before
    return best[0], best[1]


def _grid(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(scale, zero_point) of QuantizeLinear, (candidates, 1) each."""
    scale = (high - low)[:, None] / (_LEVELS - 1)
    return scale, np.rint(-low[:, None] / scale)


def _cuts(scale: np.ndarray, zero_point: np.ndarray, start: float) -> np.ndarray:
    """The first bin of each level and the bin after the last: int, (candidates, 257).

    Bins have width one and lie in a row that has no ends; the center of bin 0 is at `start`.
    """
    between = (np.arange(1, _LEVELS) - 0.5 - zero_point) * scale - start
    cuts = np.ceil(between).astype(np.int64)
    far = np.iinfo(np.int32).max
    padded: np.ndarray = np.pad(cuts, ((0, 0), (1, 1)), constant_values=((0, 0), (-far, far)))
    return padded


def _before(values: np.ndarray) -> np.ndarray:
    """The sum of the values before each one, and of all: (values + 1,)."""
    return np.concatenate([np.zeros(1, values.dtype), np.cumsum(values)])


def _xlogx(counts: np.ndarray) -> np.ndarray:
    found: np.ndarray = counts * np.log(np.maximum(counts, 1))
    return found
