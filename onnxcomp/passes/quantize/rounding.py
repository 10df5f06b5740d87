"""Rounding with error feedback: what a column of a weight loses, the columns behind it make good.

GPTQ (Frantar et al. 2022, arXiv:2210.17323) in the form of Chee et al. 2023 (arXiv:2307.13304), theorem 6: no
inverse is needed. Every product of matrices is exact (`activations.exact`), so that the bytes are the same on any
number of threads; LAPACK's factorization would not be.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from onnxcomp.activations.exact import on_grid
from onnxcomp.passes.quantize import _nbits

#: share of the inputs' mean square that is added to each one's; GPTQ has 0.01, on MiniLM 0.05 was a little better
_DAMPING = 0.05

#: columns whose errors reach all that stand behind them together; a multiple of every block
_LAZY = 256

#: columns of the factorization that are worked on together
_PANEL = 64

#: elements of float64 that are worked on at a time
_SLICE = 1 << 20

#: terms of one exact sum where a loss is measured, and outputs that it is measured on
_TERMS = 1 << 11
_JUDGED = 256


@dataclasses.dataclass(frozen=True)
class Feedback:
    """The Gram matrix H of the inputs, damped, as (I + A) D (I + A)^T with A strictly upper triangular.

    Attributes:
        columns: A on a grid: float64, (width, width).
        costs: D: what the square of a column's last error costs: float64, (width,), above zero.
    """

    columns: np.ndarray
    costs: np.ndarray


@dataclasses.dataclass(frozen=True)
class Loss:
    """Square error of the outputs relative to their square, rounded each to the nearest and with feedback."""

    nearest: float
    gptq: float


def feedback(gram: np.ndarray) -> Feedback | None:
    """Factorize a Gram matrix, float64, (width, width), that stays as it is; None for one of zeros."""
    rest = gram.copy()
    width = len(rest)
    damping = _DAMPING * float(np.trace(rest)) / width
    if not damping > 0:
        return None
    rest[np.diag_indices(width)] += damping
    costs = np.empty(width)
    for stop in range(width, 0, -_PANEL):
        start = max(stop - _PANEL, 0)
        panel = np.ascontiguousarray(rest[:stop, start:stop].T)
        for j in range(stop - 1, start - 1, -1):
            column = panel[j - start, :j]
            # no eigenvalue is smaller; rounding may say so
            costs[j] = max(panel[j - start, j], damping)
            for i in range(start, j):
                panel[i - start, :j] -= column[i] / costs[j] * column
            column /= costs[j]
        rest[:stop, start:stop] = panel.T
        before = panel[:, :start]
        scaled = on_grid(before * costs[start:stop, np.newaxis], 0, _PANEL)
        rest[:start, :start] -= scaled.T @ on_grid(before, 0, _PANEL)
    return Feedback(on_grid(np.triu(rest, 1), 0, _LAZY), costs)


def fit(matrix: np.ndarray, known: Feedback, *, bits: int, size: int, symmetric: bool, search: bool) -> _nbits.Blocks:
    """The blocks of a finite float matrix (rows, width), as `_nbits.fit`, with their numbers.

    A block's scale is made from its weights as the columns before it left them; with `search` an error counts
    by what it costs. Rows know nothing of each other.
    """
    rows, width = matrix.shape
    blocks = -(-width // size)
    scales, zero_points = np.empty((rows, blocks), matrix.dtype), np.empty((rows, blocks), np.uint8)
    packed = np.empty((rows, blocks * size * bits // 8), np.uint8)
    step = max(1, _SLICE // width)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        made = _Rounding(matrix[part], known, bits, size)
        made.run(symmetric=symmetric, search=search)
        scales[part], zero_points[part] = made.scales.T, made.zeros.T
        packed[part] = _nbits.packed(made.numbers.T, bits)
    return _nbits.Blocks(bits, size, scales, None if symmetric else zero_points, packed)


def loss(
    matrix: np.ndarray, gram: np.ndarray, known: Feedback, *, bits: int, size: int, symmetric: bool, search: bool
) -> Loss:
    """What both ways of rounding do to the outputs, measured on at most 256 of them."""
    judged = np.asarray(matrix[:: -(-len(matrix) // _JUDGED)])
    plain = _nbits.fit(judged, bits=bits, size=size, symmetric=symmetric, search=search)
    fed = fit(judged, known, bits=bits, size=size, symmetric=symmetric, search=search)
    whole = _square(judged, gram)
    nearest, gptq = (_square(judged - blocks.restored(judged), gram) / (whole or 1.0) for blocks in (plain, fed))
    return Loss(nearest, gptq)


def _square(rows: np.ndarray, gram: np.ndarray) -> float:
    """Square of the outputs of a matrix (rows, width), summed over samples and rows."""
    total = 0.0
    for start in range(0, len(gram), _TERMS):
        part = slice(start, start + _TERMS)
        product = on_grid(rows[:, part], 1, _TERMS) @ on_grid(gram[part], 0, _TERMS)
        total += float((product * rows).sum())
    return total


class _Rounding:
    """Some rows of a matrix, column by column; all arrays are turned: (width, rows).

    Attributes:
        errors: float64: weights less what stands for them, where they are rounded; the weights elsewhere.
        wanted: float64: weights with the errors before them made good.
        scales, zeros, numbers: of the result, not packed; (blocks, rows), and (padded width, rows).
    """

    def __init__(self, matrix: np.ndarray, known: Feedback, bits: int, size: int) -> None:
        rows, width = matrix.shape
        blocks = -(-width // size)
        self._known, self._bits, self._size = known, bits, size
        self.errors = np.ascontiguousarray(matrix.T, np.float64)
        self.wanted = self.errors.copy()
        self.scales, self.zeros = np.empty((blocks, rows), matrix.dtype), np.empty((blocks, rows), np.uint8)
        self.numbers = np.empty((blocks * size, rows), np.uint8)

    def run(self, *, symmetric: bool, search: bool) -> None:
        """Round all columns."""
        width = len(self.wanted)
        for start in range(0, width, _LAZY):
            stop = min(start + _LAZY, width)
            for first in range(start, stop, self._size):
                last = min(first + self._size, stop)
                self._scale(first, last, symmetric=symmetric, search=search)
                self._round(first, last)
                self._make_good(slice(first, last), slice(last, stop))
            self._make_good(slice(start, stop), slice(stop, width))

    def _scale(self, first: int, last: int, *, symmetric: bool, search: bool) -> None:
        costs = self._known.costs[first:last]
        weights = np.zeros(self._size, np.float32)
        weights[: last - first] = costs / costs.max()
        block = _nbits.cut(self.wanted[first:last].T, self._size)
        found = _nbits.best_scales(block, self._bits, self.scales.dtype, weights, symmetric=symmetric, search=search)
        self.scales[first // self._size], self.zeros[first // self._size] = found

    def _round(self, first: int, last: int) -> None:
        number = first // self._size
        scale, zero = self.scales[number].astype(np.float64), self.zeros[number].astype(np.float64)
        for j in range(first, last):
            steps = np.clip(np.rint(self.wanted[j] / scale), -zero, 2**self._bits - 1 - zero)
            self.numbers[j] = steps + zero
            self.errors[j] -= steps * scale
            self.wanted[j + 1 : last] += np.outer(self._known.columns[j, j + 1 : last], self.errors[j])
        self.numbers[last : first + self._size] = self.zeros[number]  # the last block is padded

    def _make_good(self, done: slice, behind: slice) -> None:
        if behind.start < behind.stop:
            errors = on_grid(self.errors[done], 0, _LAZY)
            self.wanted[behind] += self._known.columns[done, behind].T @ errors
