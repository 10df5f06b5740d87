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

    Args:
        channels: range of each channel of the activation.
        rows: a sample of it, best from other data: float32, (rows, channels).
        matrices: float32, (channels, out) each.
    """
    matrix = np.concatenate(matrices, axis=1)
    plain = np.ones(len(matrix))
    reference = _Rounded(plain, channels, rows, matrix).error()
    chosen = Choice(plain, "none", 1.0)
    if reference == 0:
        return chosen
    estimates = [
        (_Rounded(factors, channels, rows, matrix).estimate(), number, family, factors)
        for number, (family, factors) in enumerate(_candidates(channels, matrix))
    ]
    for _, _, family, factors in sorted(estimates)[:_JUDGED]:
        error = _Rounded(factors, channels, rows, matrix).error() / reference
        if error < chosen.error:
            chosen = Choice(factors, family, error)
    return chosen


def _candidates(channels: Channels, matrix: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """SmoothQuant's family, by the largest and by the mean square weight, and factors of outliers alone."""
    peak = np.maximum(-channels.low, channels.high)
    alive = peak > 0  # a channel that was always zero says nothing of what it will be
    peak = np.where(alive, peak, np.median(peak[alive]))
    sizes = {
        "largest": np.abs(matrix).max(1).astype(np.float64),
        "mean-square": np.sqrt(np.square(matrix).mean(1, dtype=np.float64)),
    }
    for kind, weights in sizes.items():
        size = np.maximum(weights, weights.max() * _TINY)
        for alpha in _ALPHAS:
            factors = peak**alpha / size ** (1 - alpha)
            factors = np.maximum(factors / np.median(factors), _LEAST)
            yield f"alpha {alpha:.2f} by {kind} weight", np.where(alive, factors, 1.0)
    for share in _QUANTILES:
        yield f"outliers beyond quantile {share:.2f}", np.maximum(peak / np.quantile(peak, share), 1.0)


class _Rounded:
    """An activation and its matrix behind factors, and what int8 makes of both."""

    def __init__(self, factors: np.ndarray, channels: Channels, rows: np.ndarray, matrix: np.ndarray) -> None:
        inverse = (1 / factors).astype(np.float32)
        low, high = min((channels.low * inverse).min(), 0.0), max((channels.high * inverse).max(), 0.0)
        scale = np.float32(max((high - low) / 255, np.finfo(np.float32).tiny))
        self._rows = rows * inverse
        # the rows come from other samples than the range: what lies beyond it saturates
        levels = np.clip(np.rint(self._rows / scale), np.rint(low / scale), np.rint(high / scale))
        self._rounding = levels * scale - self._rows
        heavier = matrix * factors.astype(np.float32)[:, np.newaxis]
        steps = np.maximum(np.abs(heavier).max(0) / _LEVELS, np.finfo(np.float32).tiny)
        self._stored = np.rint(heavier / steps) * steps
        self._wrong = self._stored - heavier

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
