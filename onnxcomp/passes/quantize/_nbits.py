"""Blocks of 4 or 8 bits, as MatMulNBits and GatherBlockQuantized of com.microsoft read them.

Written here, not taken from ORT's quantizer: that one rounds to nearest and knows no search of the
scale. Format: ContribOperators.md of ONNX Runtime.
"""

from __future__ import annotations

import dataclasses

import numpy as np

#: a block's scale may be this much of what its largest value asks for; the error decides
_SHRINK = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)

#: elements that are worked on at a time, so that a large tensor needs no second float copy
_SLICE = 1 << 20


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The scales of a float matrix (rows, columns), each row cut into blocks of `size`, the last one padded.

    A number n of a block stands for (n - zero point) * scale.

    Attributes:
        bits: 4 or 8.
        size: elements of a block.
        scales: (rows, blocks), in the type of the weights; may be negative.
        zero_points: uint8, (rows, blocks); None when symmetric: 8 for 4 bits, 128 for 8.
        chosen: the numbers as they are stored, where they are not simply the nearest.
    """

    bits: int
    size: int
    scales: np.ndarray
    zero_points: np.ndarray | None
    chosen: np.ndarray | None = None

    def numbers(self, matrix: np.ndarray) -> np.ndarray:
        """The matrix in these blocks: uint8, (rows, blocks * size * bits / 8)."""
        if self.chosen is not None:
            return self.chosen
        rows, blocks = self.scales.shape
        made = np.empty((rows, blocks * self.size * self.bits // 8), np.uint8)
        zeros = self._zeros()
        for part in _slices(rows, blocks * self.size):
            w = cut(matrix[part], self.size)
            zero = zeros[part].reshape(-1).astype(np.float32)
            steps = _steps(w, self.scales[part].reshape(-1).astype(np.float32), zero, 2**self.bits - 1)
            whole = (steps + zero[:, np.newaxis]).astype(np.uint8)
            made[part] = packed(whole.reshape(-1, blocks * self.size), self.bits)
        return made

    def restored(self, matrix: np.ndarray) -> np.ndarray:
        """What the numbers of the matrix stand for: float32, of its shape."""
        numbers = self.numbers(matrix)
        if self.bits == 4:
            numbers = np.stack([numbers & 15, numbers >> 4], axis=-1)
        steps = numbers.reshape(*self.scales.shape, self.size) - self._zeros()[..., np.newaxis].astype(np.float32)
        wide: np.ndarray = steps * self.scales[..., np.newaxis].astype(np.float32)
        return wide.reshape(len(wide), -1)[:, : matrix.shape[1]]

    def packed_zero_points(self) -> np.ndarray | None:
        """uint8, (rows, ceil(blocks * bits / 8))."""
        if self.zero_points is None:
            return None
        odd = self.zero_points.shape[1] % 2 if self.bits == 4 else 0
        return packed(np.pad(self.zero_points, ((0, 0), (0, odd))), self.bits)

    def _zeros(self) -> np.ndarray:
        """uint8, (rows, blocks)."""
        half = np.full(self.scales.shape, 2 ** (self.bits - 1), np.uint8)
        return half if self.zero_points is None else self.zero_points


def fit(matrix: np.ndarray, *, bits: int, size: int, symmetric: bool, search: bool) -> Blocks:
    """The blocks of a finite float matrix (rows, columns); with `search`, of some scales the one with the least error.

    The error is the mean-square one of the weights.
    """
    rows, columns = matrix.shape
    blocks = -(-columns // size)
    scales = np.empty((rows, blocks), matrix.dtype)
    zero_points = np.empty((rows, blocks), np.uint8)
    for part in _slices(rows, blocks * size):
        found = best_scales(cut(matrix[part], size), bits, matrix.dtype, symmetric=symmetric, search=search)
        scales[part] = found[0].reshape(-1, blocks)
        zero_points[part] = found[1].reshape(-1, blocks)
    return Blocks(bits, size, scales, None if symmetric else zero_points)


def best_scales(
    w: np.ndarray, bits: int, dtype: np.dtype, costs: np.ndarray | None = None, *, symmetric: bool, search: bool
) -> tuple[np.ndarray, np.ndarray]:
    """(scales, zero points) of blocks `w`, float32 (count, size).

    `costs`: float32, (size,): what the square of an error counts in the search; None: all the same.
    """
    top, half = 2**bits - 1, 2 ** (bits - 1)
    low, high = np.minimum(w.min(axis=1), 0), np.maximum(w.max(axis=1), 0)
    if symmetric:  # the largest value becomes -half, of which there is one more than of +half
        full = _not_zero(np.where(-low >= high, low, high) / -half)
        zero = np.full(len(w), half, np.float32)
    else:
        full = _not_zero((high - low) / top)
        zero = np.rint(-low / full)
    best = _stored(full, dtype)
    if not search:
        return best, zero
    unit = w / full[:, np.newaxis]  # no square of these can overflow, or vanish
    least = np.full(len(w), np.inf, np.float32)
    for factor in (*_SHRINK, half / (half - 1)):
        scale = _stored(full * factor, dtype)
        steps = _steps(unit, scale / full, zero, top)
        weighted = steps if costs is None else steps * costs
        square = np.einsum("ij,ij->i", weighted, steps)
        fitted = full * np.einsum("ij,ij->i", weighted, unit) / _not_zero(square)  # what fits these steps best
        scale = _stored(np.where(square == 0, scale, fitted), dtype)
        steps = _steps(unit, scale / full, zero, top)
        squares = np.square(steps * (scale / full)[:, np.newaxis] - unit)
        error = (squares if costs is None else squares * costs).sum(axis=1)
        better = error < least
        least, best = np.where(better, error, least), np.where(better, scale, best)
    return best, zero


def _slices(rows: int, width: int) -> list[slice]:
    step = max(1, _SLICE // width)
    return [slice(start, start + step) for start in range(0, rows, step)]


def cut(rows: np.ndarray, size: int) -> np.ndarray:
    """Rows as float32 blocks, (rows * blocks, size)."""
    wide = np.pad(rows.astype(np.float32), ((0, 0), (0, -rows.shape[1] % size)))
    return wide.reshape(-1, size)


def _steps(w: np.ndarray, scale: np.ndarray, zero: np.ndarray, top: int) -> np.ndarray:
    """Whole steps of `scale` from the zero point, in reach of the type; float32."""
    steps = np.rint(w / scale[:, np.newaxis])
    clipped: np.ndarray = np.clip(steps, -zero[:, np.newaxis], top - zero[:, np.newaxis])
    return clipped


def _stored(scale: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The scale as the file holds it, never 0; float32."""
    return _not_zero(scale.astype(dtype).astype(np.float32))


def _not_zero(numbers: np.ndarray) -> np.ndarray:
    made: np.ndarray = np.where(numbers == 0, np.float32(1), numbers)
    return made


def packed(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Two numbers a byte for 4 bits, the first in the lower half."""
    return numbers if bits == 8 else numbers[:, ::2] | (numbers[:, 1::2] << 4)
