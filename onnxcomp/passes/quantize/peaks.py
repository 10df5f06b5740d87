"""The range of an activation, and whether one sample stretches it so far that the others vanish."""

from __future__ import annotations

import math

import numpy as np

from onnxcomp.activations.statistics import State

#: exponents of float64, from the least denormal on
_LEAST, _EXPONENTS = -1074, 2100

#: half a step of 8 bits is this share of the range
_HALF_STEP = 1 / 510


class Peaks:
    """Smallest and largest value, and how large each row of the first axis gets, to a power of two.

    Attributes:
        low, high: inf and -inf before the first value.
        rows: how many rows were seen.
        largest: the row, counted over all updates, with the largest magnitude.
    """

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf
        self.rows = self.largest = 0
        self._peak = -math.inf
        self._exponents = np.zeros(_EXPONENTS, np.int64)

    @property
    def name(self) -> str:
        """What it keeps."""
        return "range, and peaks of rows"

    def update(self, array: np.ndarray) -> None:
        """Add finite values of any shape."""
        if not array.size:
            return
        rows = array.reshape(len(array), -1) if array.ndim else array.reshape(1, 1)
        low, high = rows.min(axis=1).astype(np.float64), rows.max(axis=1).astype(np.float64)
        peaks = np.maximum(np.abs(low), np.abs(high))
        self.low, self.high = min(self.low, float(low.min())), max(self.high, float(high.max()))
        at = int(peaks.argmax())
        if peaks[at] > self._peak:
            self._peak, self.largest = float(peaks[at]), self.rows + at
        self.rows += len(rows)
        _, exponents = np.frexp(peaks[peaks > 0])
        self._exponents += np.bincount(exponents - _LEAST, minlength=_EXPONENTS)

    @property
    def usual(self) -> float:
        """What half of the rows that are not all zero stay below, a power of two; 0 without such rows."""
        below = np.cumsum(self._exponents)
        if not below[-1]:
            return 0.0
        exponent = int(np.searchsorted(below, (below[-1] + 1) // 2)) + _LEAST
        return math.ldexp(1.0, exponent) if exponent < 1024 else math.inf

    def vanish(self, low: float, high: float) -> bool:
        """Whether half of the rows would round to zero in 8 bits over this range."""
        return 0 < self.usual <= (high - low) * _HALF_STEP

    def state(self) -> State:
        """All of it as arrays."""
        ends = np.array([self.low, self.high, self._peak])
        return {"ends": ends, "rows": np.array([self.rows, self.largest]), "exponents": self._exponents}

    def restore(self, state: State) -> None:
        """Go on from what `state` gave."""
        self.low, self.high, self._peak = (float(v) for v in state["ends"])
        self.rows, self.largest = (int(v) for v in state["rows"])
        self._exponents = state["exponents"].astype(np.int64)
