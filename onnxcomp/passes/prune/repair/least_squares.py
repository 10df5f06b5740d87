"""Least squares from a Gram matrix, with the same bytes on any number of threads; LAPACK's would not be."""

from __future__ import annotations

import numpy as np

from onnxcomp.activations.exact import on_grid

#: columns that are factorized, or solved for, together
_PANEL = 64

#: times that the error of a solution is made good; each takes away all but a few digits of it
_REFINED = 2

#: a pivot is at least this, in a matrix with ones on its diagonal: what is smaller is rounding
_SMALLEST = 1e-7


def solve(gram: np.ndarray, right: np.ndarray, *, refined: int = _REFINED) -> np.ndarray:
    """X of `gram @ X = right`: float64, (width, columns).

    By Cholesky's factorization, in panels whose products are exact (`activations.exact`), and refined with
    residuals of twice as many bits. A column that is zero in `gram` gives zeros.

    Args:
        gram: symmetric and positive semidefinite, float64, (width, width); stays as it is.
        right: float64, (width, columns).
        refined: times that the error of the solution is made good; 0 leaves about five digits.
    """
    diagonal = np.diagonal(gram)
    # powers of two, so that scaling rounds nothing
    scale = np.where(diagonal > 0, np.ldexp(1.0, -(np.frexp(np.maximum(diagonal, 0))[1] // 2)), 0.0)
    scaled = gram * scale[:, np.newaxis] * scale
    factor = _factor(scaled)
    wanted = right * scale[:, np.newaxis]
    found = _substitute(factor, wanted)
    for _ in range(refined):
        residual = wanted - product(scaled, found)
        better = found + _substitute(factor, residual)
        if not _size(wanted - product(scaled, better)) < _size(residual):
            break
        found = better
    solution: np.ndarray = found * scale[:, np.newaxis]
    return solution


def _factor(matrix: np.ndarray) -> np.ndarray:
    """The lower triangle L of L L^T: float64, (width, width)."""
    rest, width = matrix.copy(), len(matrix)
    lower = np.zeros_like(rest)
    for start in range(0, width, _PANEL):
        stop = min(start + _PANEL, width)
        panel = rest[start:, start:stop].copy()
        for j in range(stop - start):
            # columns of zeros, and what rounding made of those that depend on others
            column = panel[j:, j] / np.sqrt(panel[j, j]) if panel[j, j] > _SMALLEST else _unit(width - start - j)
            panel[j:, j] = column
            panel[:j, j] = 0
            panel[j:, j + 1 :] -= column[:, np.newaxis] * column[1 : stop - start - j]
        lower[start:, start:stop] = panel
        below = on_grid(panel[stop - start :], 1, _PANEL)
        rest[stop:, stop:] -= below @ below.T
    return lower


def _unit(length: int) -> np.ndarray:
    column = np.zeros(length)
    column[0] = 1
    return column


def _substitute(lower: np.ndarray, right: np.ndarray) -> np.ndarray:
    """X of `lower @ lower.T @ X = right`."""
    found, width = right.copy(), len(lower)
    starts = range(0, width, _PANEL)
    for start in starts:
        stop = min(start + _PANEL, width)
        for j in range(start, stop):
            found[j] /= lower[j, j]
            found[j + 1 : stop] -= lower[j + 1 : stop, j, np.newaxis] * found[j]
        found[stop:] -= _short(lower[stop:, start:stop], found[start:stop])
    for start in reversed(starts):
        stop = min(start + _PANEL, width)
        for j in range(stop - 1, start - 1, -1):
            found[j] /= lower[j, j]
            found[start:j] -= lower[j, start:j, np.newaxis] * found[j]
        found[:start] -= _short(lower[start:stop, :start].T, found[start:stop])
    return found


def _short(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """A product with at most a panel of terms."""
    product: np.ndarray = on_grid(left, 1, _PANEL) @ on_grid(right, 0, _PANEL)
    return product


def product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The product of two matrices, to the 44 bits of their factors that two rounds of the grid hold: float64."""
    total = np.zeros((len(left), right.shape[1]))
    for start in range(0, len(right), _PANEL):
        a, b = left[:, start : start + _PANEL], right[start : start + _PANEL]
        high = on_grid(a, 1, _PANEL), on_grid(b, 0, _PANEL)
        low = on_grid(a - high[0], 1, _PANEL), on_grid(b - high[1], 0, _PANEL)
        total += high[0] @ high[1]
        total += high[0] @ low[1]
        total += low[0] @ high[1]
    return total


def _size(array: np.ndarray) -> float:
    return float(np.abs(array).max(initial=0.0))
