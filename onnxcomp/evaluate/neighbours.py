"""Which of the other samples is the nearest, after embeddings have changed: what a search by similarity would find."""

from __future__ import annotations

import numpy as np

from onnxcomp.evaluate.intervals import Interval, wilson

#: samples that are compared with each other, the first ones; the work grows with the square
MOST = 4096

#: a row has length 1 within this
_TOLERANCE = 1e-3

_BLOCK = 512  # rows whose products with all others are held at a time


class Neighbours:
    """Collects one output of two models, batch by batch, where it looks like embeddings of length 1."""

    def __init__(self) -> None:
        self._pairs: list[tuple[np.ndarray, np.ndarray]] = []
        self._seen = 0
        self._fits = True

    def add(self, reference: np.ndarray, candidate: np.ndarray, samples: int) -> None:
        """The output of both models for one batch, of equal shapes."""
        self._fits = self._fits and reference.dtype.kind == "f" and reference.ndim == 2 and len(reference) == samples
        if not self._fits:
            self._pairs.clear()
            return
        lengths = np.linalg.norm(reference.astype(np.float64), axis=1)
        self._fits = bool(np.all(np.abs(lengths - 1) <= _TOLERANCE))
        left = MOST - self._seen
        if left > 0:
            self._pairs.append((reference[:left].astype(np.float32), candidate[:left].astype(np.float32)))
            self._seen += min(samples, left)

    def kept(self) -> Interval | None:
        """Share of samples whose nearest other one, by cosine, is the same by both models.

        None where the reference's rows are not all of length 1, or have no negative entry (probabilities near 0
        and 1 have length 1 too), or where there are fewer than three samples.
        """
        if not self._fits or self._seen < 3:
            return None
        reference, candidate = (np.concatenate(part) for part in zip(*self._pairs, strict=True))
        if reference.min() >= 0:
            return None
        same = nearest(reference) == nearest(candidate)
        return wilson(int(same.sum()), len(same))


def nearest(embeddings: np.ndarray) -> np.ndarray:
    """Row of the nearest other embedding by cosine: (n, width) float -> (n,) int64. Of equal ones it is the first.

    A row that has no direction (zeros, not finite) is near to none, and the nearest of such a row is -1.
    """
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    lost = ~np.isfinite(unit).all(1)
    unit[lost] = 0
    found = np.empty(len(unit), np.int64)
    for low in range(0, len(unit), _BLOCK):
        near = unit[low : low + _BLOCK] @ unit.T
        near[:, lost] = -np.inf
        near[np.arange(len(near)), low + np.arange(len(near))] = -np.inf
        found[low : low + _BLOCK] = near.argmax(1)
    found[lost] = -1
    return found
