"""Which factors smooth an activation best, judged by the error that int8 causes behind it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from onnxcomp.activations import Channels

_ALPHAS = np.linspace(0.2, 1.0, 17)
_QUANTILES = np.linspace(0.5, 0.95, 10)

#: largest magnitude of a quantized weight, whatever this host prefers: the same bytes everywhere
_LEVELS = 127

#: candidates whose outputs are computed, the best by estimate
_JUDGED = 4

#: numbers of the matrix that an estimate sees, and how many times as many a computation of outputs does: what a
#: layer costs grows with its inputs alone once it is larger
_ELEMENTS = 1 << 20
_MORE = 4

#: columns that are looked at whatever their length
_FEWEST = 64

#: a channel is enlarged at most so much: on other samples it may be larger than it was here
_LEAST = 1 / 16

#: rows of a matrix that hold less than this share of the largest weight count as this
_TINY = 1e-6


@dataclasses.dataclass(frozen=True)
class Choice:
    """The best candidate.

    Attributes:
        factors: float64, (channels,): the activation is divided by them.
        family: how they were made, for the record.
        error: squared error of the outputs relative to that without smoothing.
    """

    factors: np.ndarray
    family: str
    error: float


def best(channels: Channels, rows: np.ndarray, matrices: Sequence[np.ndarray]) -> Choice:
    """Choose factors for an activation and the matrices behind it.

    Columns of large matrices are sampled, each with all its rows: its scale is then what it will be.

    Args:
        channels: range of each channel of the activation.
        rows: a sample of it, best from other data: float32, (rows, channels).
        matrices: float32, (channels, out) each.
    """
    width = rows.shape[1]
    sizes = _sizes(matrices)
    few = _columns(matrices, sizes.columns, max(_ELEMENTS // width, _FEWEST))
    more = _columns(matrices, sizes.columns, max(_MORE * _ELEMENTS // width, _FEWEST))
    plain = np.ones(width)
    reference = _Rounded(plain, channels, rows, more).error()
    chosen = Choice(plain, "none", 1.0)
    if reference == 0:
        return chosen
    estimates = [
        (_Rounded(factors, channels, rows, few).estimate(), number, family, factors)
        for number, (family, factors) in enumerate(_candidates(channels, sizes))
    ]
    for _, _, family, factors in sorted(estimates)[:_JUDGED]:
        error = _Rounded(factors, channels, rows, more).error() / reference
        if error < chosen.error:
            chosen = Choice(factors, family, error)
    return chosen


@dataclasses.dataclass(frozen=True)
class _Sizes:
    """Of matrices side by side, float64.

    Attributes:
        largest, mean: weight of each row, (channels,): by magnitude, and root of the mean square.
        columns: squares of each column, summed, (out,).
    """

    largest: np.ndarray
    mean: np.ndarray
    columns: np.ndarray


def _sizes(matrices: Sequence[np.ndarray]) -> _Sizes:
    """A few rows at a time."""
    width = sum(matrix.shape[1] for matrix in matrices)
    step = max(_ELEMENTS // width, 1)
    largest, squares, columns = [], [], np.zeros(width)
    for start in range(0, len(matrices[0]), step):
        block = np.concatenate([matrix[start : start + step] for matrix in matrices], axis=1)
        largest.append(np.abs(block).max(1))
        np.square(block, out=block)
        squares.append(block.sum(1, dtype=np.float64))
        columns += block.sum(0, dtype=np.float64)
    return _Sizes(np.concatenate(largest).astype(np.float64), np.sqrt(np.concatenate(squares) / width), columns)


def _columns(matrices: Sequence[np.ndarray], sizes: np.ndarray, most: int) -> np.ndarray:
    """The matrices side by side, or columns of them, the same each time: float32, (channels, at most `most`).

    One half are the largest, since few of them may make most of the error; the other half stand for the rest,
    and are enlarged so that their errors are as large as those of all that they stand for.
    """
    chosen, factors = np.arange(len(sizes)), np.ones(len(sizes), np.float32)
    if len(sizes) > most:
        order = np.argsort(-sizes, kind="stable")
        rest = order[most // 2 :]
        drawn = np.random.default_rng(len(rest)).permutation(rest)[: most - most // 2]
        factors[drawn] = np.sqrt(len(rest) / len(drawn))
        chosen = np.sort(np.concatenate([order[: most // 2], drawn]))
    parts, start = [], 0
    for matrix in matrices:
        end = start + matrix.shape[1]
        parts.append(matrix[:, chosen[(start <= chosen) & (chosen < end)] - start])
        start = end
    return np.concatenate(parts, axis=1) * factors[chosen]


def _candidates(channels: Channels, sizes: _Sizes) -> Iterator[tuple[str, np.ndarray]]:
    """SmoothQuant's family, by the largest and by the mean square weight, and factors of outliers alone."""
    peak = np.maximum(-channels.low, channels.high)
    alive = peak > 0  # a channel that was always zero says nothing of what it will be
    peak = np.where(alive, peak, np.median(peak[alive]))
    for kind, weights in (("largest", sizes.largest), ("mean-square", sizes.mean)):
        size = np.maximum(weights, weights.max() * _TINY)
        for alpha in _ALPHAS:
            factors = peak**alpha / size ** (1 - alpha)
            factors = np.maximum(factors / np.median(factors), _LEAST)
            yield f"alpha {alpha:.2f} by {kind} weight", np.where(alive, factors, 1.0)
    for share in _QUANTILES:
        yield f"outliers beyond quantile {share:.2f}", np.maximum(peak / np.quantile(peak, share), 1.0)


class _Rounded:
    """An activation and columns of its matrix behind factors, and what int8 makes of both."""

    def __init__(self, factors: np.ndarray, channels: Channels, rows: np.ndarray, matrix: np.ndarray) -> None:
        inverse = (1 / factors).astype(np.float32)
        low, high = min((channels.low * inverse).min(), 0.0), max((channels.high * inverse).max(), 0.0)
        scale = np.float32(max((high - low) / 255, np.finfo(np.float32).tiny))
        self._rows = rows * inverse
        # the rows come from other samples than the range: what lies beyond it saturates
        levels = np.rint(self._rows / scale)
        np.clip(levels, np.rint(low / scale), np.rint(high / scale), out=levels)
        levels *= scale
        self._rounding = np.subtract(levels, self._rows, out=levels)
        heavier = matrix * factors.astype(np.float32)[:, np.newaxis]
        peak = np.maximum(heavier.max(0), -heavier.min(0))
        steps = np.maximum(peak / _LEVELS, np.finfo(np.float32).tiny)
        self._stored = heavier / steps
        np.rint(self._stored, out=self._stored)
        self._stored *= steps
        self._wrong = np.subtract(self._stored, heavier, out=heavier)

    def error(self) -> float:
        """Mean squared error of the outputs, summed over them."""
        wrong = self._rounding @ self._stored + self._rows @ self._wrong
        return float(np.square(wrong).sum(dtype=np.float64) / len(wrong))

    def estimate(self) -> float:
        """The same without a product of matrices: as if all errors were independent of each other."""
        size = np.square(self._stored).sum(1, dtype=np.float64)
        by_rows = np.square(self._rounding).mean(0, dtype=np.float64) * size
        by_matrix = np.square(self._rows).mean(0, dtype=np.float64) * np.square(self._wrong).sum(1, dtype=np.float64)
        # summed by numpy: BLAS sums in an order that depends on the number of threads
        return float((by_rows + by_matrix).sum())
