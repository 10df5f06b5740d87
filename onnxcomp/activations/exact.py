"""Products of matrices that come out the same, whatever the order of their sums: on any number of threads."""

from __future__ import annotations

import numpy as np

#: float64 holds every whole number up to two to the power of this
_WHOLE = 53


def bits_for(terms: int) -> int:
    """Bits that two factors may have each so that a sum of so many products is exact in float64."""
    return (_WHOLE - (terms - 1).bit_length()) // 2


def on_grid(array: np.ndarray, axis: int, terms: int) -> np.ndarray:
    """The numbers rounded to few bits of the largest along `axis`: float64, of the same shape.

    Two arrays on grids, the axis in both the one that a product sums over, have products whose sums of up to
    `terms` are exact. BLAS adds in an order that depends on the number of threads and on the processor; exact
    sums do not. 2,048 terms leave 21 bits, 128 leave 23: float32 has 24. It is the first term of
    Ozaki et al. 2012 (doi:10.1007/s11075-011-9478-1).
    """
    made: np.ndarray = array.astype(np.float64)
    if made.size:
        peak = np.maximum(made.max(axis, keepdims=True), -made.min(axis, keepdims=True))
        exponent = np.frexp(peak)[1] - bits_for(terms)
        # so far from zero, neighbours in float64 are one step of the grid apart
        far = np.ldexp(1.5, exponent + _WHOLE - 1)
        made += far
        made -= far
    return made
