"""What can be kept of a tensor while batches run, in memory that does not grow with their number."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import numpy as np

State = Mapping[str, np.ndarray]


class Statistic(Protocol):
    """Something that is updated batch by batch, and can be stored and restored."""

    @property
    def name(self) -> str:
        """What it keeps, with all that shapes it: stored statistics of another name are not these."""

    def update(self, array: np.ndarray) -> None:
        """Take in one batch of a tensor: finite floats of any shape."""

    def state(self) -> State:
        """All of it as arrays."""

    def restore(self, state: State) -> None:
        """Go on from what `state` gave."""


class Range:
    """The smallest and the largest value.

    Attributes:
        low, high: inf and -inf before the first value.
    """

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf

    @property
    def name(self) -> str:
        """What it keeps."""
        return "range"

    def update(self, array: np.ndarray) -> None:
        """Add finite values of any shape."""
        if array.size:
            self.low, self.high = min(self.low, float(array.min())), max(self.high, float(array.max()))

    def state(self) -> State:
        """Both ends."""
        return {"ends": np.array([self.low, self.high])}

    def restore(self, state: State) -> None:
        """Go on from what `state` gave."""
        self.low, self.high = (float(v) for v in state["ends"])


class Channels:
    """Range and mean of each channel.

    Args:
        axis: the axis of the channels; the others are summed over.

    Attributes:
        low, high, total: float64, (channels,); empty before the first batch.
        count: values of each channel.
    """

    def __init__(self, axis: int) -> None:
        self.axis = axis
        self.low = self.high = self.total = np.zeros(0)
        self.count = 0

    @property
    def name(self) -> str:
        """What it keeps."""
        return f"channels of axis {self.axis}"

    def update(self, array: np.ndarray) -> None:
        """Add a batch of one or more axes; the channels must be as many as in the first."""
        if array.size == 0:
            return
        axis = self.axis % array.ndim
        others = tuple(i for i in range(array.ndim) if i != axis)
        low, high = array.min(others).astype(np.float64), array.max(others).astype(np.float64)
        total = array.sum(others, dtype=np.float64)
        if self.count:
            low, high, total = np.minimum(low, self.low), np.maximum(high, self.high), total + self.total
        self.low, self.high, self.total = low, high, total
        self.count += array.size // array.shape[axis]

    @property
    def mean(self) -> np.ndarray:
        """float64, (channels,)."""
        mean: np.ndarray = self.total / max(self.count, 1)
        return mean

    def state(self) -> State:
        """All of it as arrays."""
        return {"low": self.low, "high": self.high, "total": self.total, "count": np.array(self.count)}

    def restore(self, state: State) -> None:
        """Go on from what `state` gave."""
        self.low, self.high, self.total = state["low"], state["high"], state["total"]
        self.count = int(state["count"])


class Rows:
    """A uniform sample of rows along the last axis, by the smallest of random keys (reservoir sampling).

    Args:
        limit: rows to keep.

    Attributes:
        rows: as the tensor, (at most limit, size of the last axis).
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.rows = np.zeros((0, 0), np.float32)
        self._keys = np.zeros(0)
        self._seen = 0

    @property
    def name(self) -> str:
        """What it keeps."""
        return f"{self.limit} rows"

    def update(self, array: np.ndarray) -> None:
        """Add a batch of one or more axes; the last must be as large as in the first."""
        if array.size == 0:
            return
        rows = array.reshape(-1, array.shape[-1])
        # keyed by how many rows came before: the same rows are kept after a resumption
        keys = np.random.default_rng([len(rows), self._seen]).random(len(rows))
        self._seen += len(rows)
        if len(rows) > self.limit:
            chosen = np.sort(np.argpartition(keys, self.limit)[: self.limit])
            rows, keys = rows[chosen], keys[chosen]
        if len(self.rows):
            rows, keys = np.concatenate([self.rows, rows]), np.concatenate([self._keys, keys])
        order = np.sort(np.argsort(keys, kind="stable")[: self.limit])
        self.rows, self._keys = rows[order], keys[order]

    def state(self) -> State:
        """All of it as arrays."""
        return {"rows": self.rows, "keys": self._keys, "seen": np.array(self._seen)}

    def restore(self, state: State) -> None:
        """Go on from what `state` gave."""
        self.rows, self._keys, self._seen = state["rows"], state["keys"], int(state["seen"])
