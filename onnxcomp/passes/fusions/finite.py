"""Whether masks are proven to be finite: sdpa's guard against NaN is needed only where they are not."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onnxcomp.passes.fusions.reading import made_by, stored

#: what float32 holds with room for a few sums
_MODERATE = 1e37

_LARGEST_INTEGER = 2.0**64

#: how many operators back a proof may go
_FAR = 12

_MOVED = {"Expand", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Trilu", "Unsqueeze"}


def is_finite(value: ir.Value | None, depth: int = _FAR) -> bool:
    """Whether it holds no infinity and no NaN, as far as its operators and constants prove it."""
    tensor = stored(value)
    if tensor is not None:
        return bool(np.isfinite(np.asarray(tensor.numpy(), dtype=np.float64)).all())
    node = made_by(value, "Where", *_MOVED)
    if node is None or not depth:
        return largest(value, depth) is not None
    return all(is_finite(v, depth - 1) for v in (node.inputs[1:] if node.op_type == "Where" else node.inputs[:1]))


def largest(value: ir.Value | None, depth: int = _FAR) -> float | None:
    """A bound for the absolute value where one is proven that leaves room for sums."""
    tensor = stored(value)
    if tensor is not None:
        bound = float(np.abs(np.asarray(tensor.numpy(), dtype=np.float64)).max(initial=0))
        return bound if bound <= _MODERATE else None
    node = made_by(value, "Add", "Cast", "Mul", "Sub", "Where", *_MOVED)
    if node is None or not depth:
        return None
    if node.op_type == "Cast":
        source = node.inputs[0]
        if source is None or source.dtype is None or source.dtype.is_floating_point():
            return largest(source, depth - 1)
        return 1.0 if source.dtype == ir.DataType.BOOL else _LARGEST_INTEGER
    inputs = node.inputs[1:] if node.op_type == "Where" else node.inputs[: 1 if node.op_type in _MOVED else 2]
    bounds = [b for v in inputs if (b := largest(v, depth - 1)) is not None]
    if len(bounds) != len(inputs):
        return None
    together = sum(bounds) if node.op_type in ("Add", "Sub") else math.prod(bounds)
    bound = together if node.op_type in ("Add", "Mul", "Sub") else max(bounds)
    return bound if bound <= _MODERATE else None
