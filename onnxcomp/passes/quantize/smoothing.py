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
        rows: a sample of it: float32, (rows, channels).
        matrices: float32, (channels, out) each.
    """
    matrix = np.concatenate(matrices, axis=1)
    plain = np.ones(len(matrix))
    chosen = Choice(plain, "none", 1.0)
    reference = _error(plain, channels, rows, matrix)
    if reference == 0:
        return chosen
    for family, factors in _candidates(channels, matrix):
        error = _error(factors, channels, rows, matrix) / reference
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


def _error(factors: np.ndarray, channels: Channels, rows: np.ndarray, matrix: np.ndarray) -> float:
    """Mean squared error of the outputs, summed over them.

    Rounding errors of activations and of weights are taken as independent of each other and between
    channels, so that no product of matrices is needed.
    """
    inverse = (1 / factors).astype(np.float32)
    low, high = min((channels.low * inverse).min(), 0.0), max((channels.high * inverse).max(), 0.0)
    scale = np.float32(max((high - low) / 255, np.finfo(np.float32).tiny))
    scaled = rows * inverse
    rounding = np.rint(scaled / scale) * scale - scaled
    heavier = matrix * factors.astype(np.float32)[:, np.newaxis]
    steps = np.maximum(np.abs(heavier).max(0) / _LEVELS, np.finfo(np.float32).tiny)
    wrong = np.rint(heavier / steps) * steps - heavier
    by_activations = np.square(rounding).mean(0, dtype=np.float64) * np.square(heavier).sum(1, dtype=np.float64)
    by_weights = np.square(scaled).mean(0, dtype=np.float64) * np.square(wrong).sum(1, dtype=np.float64)
    # summed by numpy: BLAS sums in an order that depends on the number of threads
    return float((by_activations + by_weights).sum())
