"""Which stored tensors hold the same bytes, as they are or turned; read in pieces, hashed only where shapes agree."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import onnx_ir as ir

#: bytes that are read at a time; a turned matrix is copied so much at a time
_PIECE = 1 << 24

_Form = tuple[ir.DataType, tuple[int, ...]]


def form(tensor: ir.TensorProtocol) -> _Form:
    """Element type and sizes of the axes."""
    return tensor.dtype, tuple(int(size) for size in tensor.shape.numpy())


def equal(tensors: Sequence[ir.TensorProtocol]) -> list[list[int]]:
    """Indices of those that are equal in type, shape and every byte, two or more, in the order of the first."""
    return [
        group
        for alike in _by(range(len(tensors)), lambda i: form(tensors[i]))
        for same in _by(alike, lambda i: _digest(tensors[i]))
        for group in _sure(same, tensors)
    ]


def turned(tensors: Sequence[ir.TensorProtocol]) -> list[tuple[int, int]]:
    """Pairs (i, j), i before j, of matrices that are transposes of each other, with more than one row and column.

    No two of the tensors may be equal.
    """
    matrices = [i for i, tensor in enumerate(tensors) if len(tensor.shape) == 2 and min(form(tensor)[1]) > 1]
    forms = {form(tensors[i]) for i in matrices}
    able = [i for i in matrices if (tensors[i].dtype, form(tensors[i])[1][::-1]) in forms]
    # a square one would be alone with its digest: it is hashed only where another has its form
    counts = {key: sum(form(tensors[i]) == key for i in able) for key in forms}
    able = [i for i in able if len(set(form(tensors[i])[1])) == 2 or counts[form(tensors[i])] > 1]
    held = {(form(tensors[i]), _digest(tensors[i])): i for i in able}
    pairs = []
    for j in able:
        dtype, shape = form(tensors[j])
        i = held.get(((dtype, shape[::-1]), _digest(tensors[j], turned=True)))
        if i is not None and i < j and _same(tensors[i], tensors[j], turned=True):
            pairs.append((i, j))
    return pairs


def _by(indices: Sequence[int], key: Callable[[int], object]) -> list[list[int]]:
    """The indices in groups of two and more with one key."""
    groups: dict[object, list[int]] = {}
    if len(indices) > 1:
        for i in indices:
            groups.setdefault(key(i), []).append(i)
    return [group for group in groups.values() if len(group) > 1]


def _sure(same: list[int], tensors: Sequence[ir.TensorProtocol]) -> Iterator[list[int]]:
    """Those of one digest that really are what the first is."""
    first, *others = same
    group = [first, *(i for i in others if _same(tensors[first], tensors[i]))]
    if len(group) > 1:
        yield group


def _same(one: ir.TensorProtocol, other: ir.TensorProtocol, *, turned: bool = False) -> bool:
    pieces = zip(_pieces(one), _pieces(other, turned=turned), strict=True)
    return all(np.array_equal(left, right) for left, right in pieces)


def _digest(tensor: ir.TensorProtocol, *, turned: bool = False) -> bytes:
    made = hashlib.sha256()
    for piece in _pieces(tensor, turned=turned):
        made.update(piece.data)
    return made.digest()


def _pieces(tensor: ir.TensorProtocol, *, turned: bool = False) -> Iterator[np.ndarray]:
    """The bytes of a tensor, or of its transpose, in the order of its elements: uint8, some rows at a time."""
    array = np.atleast_1d(tensor.numpy())
    if turned:
        array = array.T
    if array.dtype == object:  # strings: their lengths keep 'a', 'bc' and 'ab', 'c' apart
        texts = [text if isinstance(text, bytes) else str(text).encode() for text in array.reshape(-1)]
        yield np.frombuffer(b"".join(b"%d:%s" % (len(text), text) for text in texts), np.uint8)
        return
    step = max(1, _PIECE // max(array.nbytes // len(array), 1))
    for start in range(0, len(array), step):
        yield np.ascontiguousarray(array[start : start + step]).reshape(-1).view(np.uint8)
