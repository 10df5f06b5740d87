"""Which factors smooth an activation best, judged by the error that int8 causes behind it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from onnxcomp.activations import Channels

_ALPHAS = np.linspace(0.2, 1.0, 17)
_QUANTILES = np.linspace(0.5, 0.95, 10)

#: keeps channels that are always zero out of divisions
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


def best(channels: Channels, rows: np.ndarray, matrices: Sequence[np.ndarray], levels: int) -> Choice:
    """Choose factors for an activation and the matrices behind it.

    Args:
        channels: range of each channel of the activation.
        rows: a sample of it: float32, (rows, channels).
        matrices: float32, (channels, out) each.
        levels: largest magnitude of a quantized weight.
    """
    matrix = np.concatenate(matrices, axis=1)
    plain = np.ones(len(matrix))
    reference = _error(plain, channels, rows, matrix, levels)
    chosen = Choice(plain, "none", 1.0)
    for family, factors in _candidates(channels, matrix):
        error = _error(factors, channels, rows, matrix, levels) / max(reference, np.finfo(float).tiny)
        if error < chosen.error:
            chosen = Choice(factors, family, error)
    return chosen


def _candidates(channels: Channels, matrix: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """SmoothQuant's family, by the largest and by the mean square weight, and factors of outliers alone."""
    peak = np.maximum(np.maximum(-channels.low, channels.high), _TINY)
    sizes = {
        "largest": np.maximum(np.abs(matrix).max(1), _TINY).astype(np.float64),
        "mean-square": np.maximum(np.sqrt(np.square(matrix).mean(1)), _TINY).astype(np.float64),
    }
    for kind, size in sizes.items():
        for alpha in _ALPHAS:
            factors = peak**alpha / size ** (1 - alpha)
            yield f"alpha {alpha:.2f} by {kind} weight", factors / np.median(factors)
    for share in _QUANTILES:
        yield f"outliers beyond quantile {share:.2f}", np.maximum(peak / np.quantile(peak, share), 1.0)


def _error(factors: np.ndarray, channels: Channels, rows: np.ndarray, matrix: np.ndarray, levels: int) -> float:
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
    steps = np.maximum(np.abs(heavier).max(0) / levels, np.finfo(np.float32).tiny)
    wrong = np.rint(heavier / steps) * steps - heavier
    by_activations = np.square(rounding).mean(0, dtype=np.float64) @ np.square(heavier).sum(1, dtype=np.float64)
    by_weights = np.square(scaled).mean(0, dtype=np.float64) @ np.square(wrong).sum(1, dtype=np.float64)
    return float(by_activations + by_weights)
