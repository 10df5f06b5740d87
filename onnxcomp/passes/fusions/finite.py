"""Whether a mask is proven to be finite: sdpa's guard against NaN is needed only where it is not."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onnxcomp.inspect import stored_origin
from onnxcomp.passes.fusions.reading import made_by

#: float32 holds more than ten times as much
_MODERATE = 1e37

_LARGEST_INTEGER = 2.0**64

_MOVED = {"Expand", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Trilu", "Unsqueeze"}


def is_finite(value: ir.Value | None) -> bool:
    """Whether it holds no infinity and no NaN, as far as its operators and constants prove it."""
    origin = stored_origin(value)
    if origin is not None:
        return bool(np.isfinite(np.asarray(origin[1].numpy(), dtype=np.float64)).all())
    node = made_by(value, "Where", *_MOVED)
    if node is None:
        return _largest(value) is not None
    return all(map(is_finite, node.inputs[1:] if node.op_type == "Where" else node.inputs[:1]))


def _largest(value: ir.Value | None) -> float | None:
    """A bound for the absolute value where a moderate one is proven."""
    origin = stored_origin(value)
    if origin is not None:
        numbers = np.abs(np.asarray(origin[1].numpy(), dtype=np.float64))
        bound = float(numbers.max(initial=0))
        return bound if bound <= _MODERATE else None
    node = made_by(value, "Add", "Cast", "Mul", "Sub", "Where", *_MOVED)
    if node is None:
        return None
    if node.op_type == "Cast":
        source = node.inputs[0]
        if source is None or source.dtype is None or source.dtype.is_floating_point():
            return _largest(source)
        return 1.0 if source.dtype == ir.DataType.BOOL else _LARGEST_INTEGER
    inputs = node.inputs[1:] if node.op_type == "Where" else node.inputs[: 1 if node.op_type in _MOVED else 2]
    bounds = [b for v in inputs if (b := _largest(v)) is not None]
    if len(bounds) != len(inputs):
        return None
    together = sum(bounds) if node.op_type in ("Add", "Sub") else math.prod(bounds)
    bound = together if node.op_type in ("Add", "Mul", "Sub") else max(bounds)
    return bound if bound <= _MODERATE else None
