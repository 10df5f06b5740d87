"""The k smallest magnitudes of many tensors, exactly k of them, without a copy of them all."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

#: elements that are looked at at a time: what is made of them takes a few MiB
_CHUNK = 1 << 20

#: bits that one look at all tensors tells of the threshold
_DIGIT = 16

#: reads a tensor; called once for each look, so that only one is in memory
Read = Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Cut:
    """What of a tensor is among the smallest.

    Attributes:
        wide: whether magnitudes are compared in float64 rather than float32.
        threshold: a key (see `keys`); what is below it is among them.
        ties: how many of those that are equal to it are, the first ones in C order.
    """

    wide: bool
    threshold: int
    ties: int

    def zeroed(self, array: np.ndarray) -> np.ndarray:
        """A copy with zeros where the array is among the smallest: the same shape and dtype."""
        out = np.array(array, order="C")
        left = self.ties
        for part in _parts(out):
            found = keys(part, wide=self.wide)
            part[found < self.threshold] = 0
            if left:
                equal = np.flatnonzero(found == self.threshold)[:left]
                part[equal] = 0
                left -= len(equal)
        return out


def keys(array: np.ndarray, *, wide: bool = False) -> np.ndarray:
    """Magnitudes as integers in the same order: uint32, or uint64 where `wide`; of finite floats.

    The bits of a float without its sign are ordered like its magnitude (IEEE 754); float16 and bfloat16 are
    exact in float32.
    """
    if wide:
        return np.abs(array.astype(np.float64)).view(np.uint64)
    return np.abs(array.astype(np.float32)).view(np.uint32)


def smallest(tensors: Sequence[Read], count: int, looked: Callable[[float], None] | None = None) -> list[Cut]:
    """Cuts, one for each tensor, that take exactly `count` elements in all; of equal ones, the first.

    A radix search: each look at all tensors counts the next 16 bits of those that agree with the threshold so
    far. Memory does not grow with the tensors.

    Args:
        tensors: finite floats.
        count: from 0 to all of them.
        looked: is told the share that is done.
    """
    wide = any(read().dtype.itemsize > 4 for read in tensors)
    bits = 64 if wide else 32
    prefix, left = 0, count
    counts = np.zeros((len(tensors), 1 << _DIGIT), np.int64)
    shifts = range(bits - _DIGIT, -1, -_DIGIT)
    for step, shift in enumerate(shifts):
        counts[:] = 0
        for number, read in enumerate(tensors):
            if looked is not None:
                looked((step + number / len(tensors)) / len(shifts))
            for part in _parts(read()):
                counts[number] += _digits(keys(part, wide=wide), prefix, shift)
        below = np.cumsum(counts.sum(0))
        digit = min(int(np.searchsorted(below, left)), len(below) - 1)
        left -= int(below[digit - 1]) if digit else 0
        prefix = prefix << _DIGIT | digit
    cuts = []
    for equal in counts[:, prefix & ((1 << _DIGIT) - 1)]:
        ties = min(left, int(equal))
        cuts.append(Cut(wide, prefix, ties))
        left -= ties
    return cuts


def _digits(found: np.ndarray, prefix: int, shift: int) -> np.ndarray:
    """How often each next digit follows the prefix: int64, (65536,)."""
    high = found >> shift
    if prefix or shift + _DIGIT < found.itemsize * 8:
        high = high[high >> _DIGIT == prefix] & ((1 << _DIGIT) - 1)
    return np.bincount(high.astype(np.int64), minlength=1 << _DIGIT)


def _parts(array: np.ndarray) -> Iterator[np.ndarray]:
    """Flat pieces in C order; views where the array is contiguous."""
    flat = array.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        yield flat[start : start + _CHUNK]
