"""Ranges of activations for static quantization, measured on real samples in bounded memory."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx_ir as ir

from onnxcomp.activations import Histogram, Range, observe
from onnxcomp.data import Batches
from onnxcomp.passes.base import Context
from onnxcomp.passes.quantize import ranges

#: {tensor: (low, high)}
Ranges = Mapping[str, ranges.Ends]


def measure(model: ir.Model, op_types: Collection[str], data: Batches, context: Context, method: str) -> Ranges:
    """The range of every float tensor that nodes of these types read or write, in the main graph.

    `method` is one of `ranges.METHODS`. Raises CalibrationError for NaN and infinity.
    """
    names = _tensors(model, op_types)
    if method == "minmax":
        exact = {name: Range() for name in names}
        observe(model, data, {n: [r] for n, r in exact.items()}, workdir=context.workdir, store=context.store)
        return {n: (min(r.low, 0.0), max(r.high, 0.0)) for n, r in exact.items() if r.low <= r.high}
    seen = {name: Histogram() for name in names}
    observe(model, data, {n: [h] for n, h in seen.items()}, workdir=context.workdir, store=context.store)
    return {n: ranges.METHODS[method](h) for n, h in seen.items() if h.low <= h.high}


def _tensors(model: ir.Model, op_types: Collection[str]) -> list[str]:
    found: dict[str, None] = {}
    for node in model.graph:
        if node.op_type in op_types and not node.domain:
            for value in (*node.inputs, *node.outputs):
                if value is not None and value.name and value.const_value is None and _may_be_float(value):
                    found[value.name] = None
    return list(found)


def _may_be_float(value: ir.Value) -> bool:
    return value.dtype is None or value.dtype == ir.DataType.FLOAT
