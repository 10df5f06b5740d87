"""A histogram whose range grows by doubling, so that merging batches loses nothing."""

from __future__ import annotations

import math

import numpy as np

from onnxcomp.activations.statistics import State

#: bins in all; half of them on each side of zero
BINS = 1 << 14
_HALF = BINS // 2

#: least exponent of a bin's width, so that 1 / width stays finite
_LEAST = -1000

#: values counted at a time: the indices of a large tensor never stand in memory together, and stay in the cache
_CHUNK = 1 << 15

#: widths by which float32 is divided without loss, so that counting takes no float64
_LEAST_SINGLE, _MOST_SINGLE = 2.0**-126, 1.0


class Histogram:
    """Counts of a tensor's values in 16,384 bins of equal width, half of them on each side of zero.

    The width is a power of two and doubles when a larger value comes: two bins become one, so the counts
    are those of one pass over all values, in whatever order and batches they came.

    Attributes:
        counts: int64, (BINS,).
        width: of a bin; 0 before the first value other than zero.
        low, high: the exact smallest and largest value; inf and -inf before the first.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, np.int64)
        self.width = 0.0
        self.low, self.high = math.inf, -math.inf

    def update(self, array: np.ndarray) -> None:
        """Add finite values of any shape."""
        flat = array.reshape(-1)
        for start in range(0, flat.size, _CHUNK):
            self._count(flat[start : start + _CHUNK])

    @property
    def name(self) -> str:
        """What it keeps."""
        return f"histogram of {BINS} bins"

    @property
    def centers(self) -> np.ndarray:
        """The middle of each bin: float64, (BINS,)."""
        centers: np.ndarray = (np.arange(BINS) - _HALF + 0.5) * self.width
        return centers

    def occupied(self) -> tuple[np.ndarray, np.ndarray]:
        """(centers, counts) from the first to the last bin that holds a value."""
        held = np.flatnonzero(self.counts)
        span = slice(held[0], held[-1] + 1) if held.size else slice(0)
        return self.centers[span], self.counts[span]

    def state(self) -> State:
        """All of it as arrays."""
        return {"counts": self.counts, "ends": np.array([self.width, self.low, self.high])}

    def restore(self, state: State) -> None:
        """Go on from what `state` gave."""
        self.counts = state["counts"].astype(np.int64)
        self.width, self.low, self.high = (float(v) for v in state["ends"])

    def _count(self, values: np.ndarray) -> None:
        low, high = float(values.min()), float(values.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._widen(max(-low, high))
        if self.width == 0:
            self.counts[_HALF] += values.size
            return
        # powers of two: the product is exact, a value lands in the same bin whatever came before
        single = values.dtype.itemsize < 8 and _LEAST_SINGLE <= self.width <= _MOST_SINGLE
        scaled = np.multiply(values, 1 / self.width, dtype=np.float32 if single else np.float64)
        # by way of int32, which processors convert several values at a time to
        index = np.floor(scaled, out=scaled).astype(np.int32).astype(np.intp)
        index += _HALF
        self.counts += np.bincount(index, minlength=BINS)

    def _widen(self, peak: float) -> None:
        if peak == 0:
            return
        # frexp: peak = m * 2**e with m < 1, so 2**e lies beyond the peak
        exponent = math.frexp(peak)[1] - (_HALF.bit_length() - 1)
        width = math.ldexp(1.0, max(exponent, _LEAST))
        if self.width == 0:
            self.width = width  # only zeros so far, their bin is the same at any width
        while self.width < width:
            merged = np.zeros_like(self.counts)
            merged[_HALF // 2 : _HALF // 2 + _HALF] = self.counts.reshape(-1, 2).sum(1)
            self.counts, self.width = merged, self.width * 2
