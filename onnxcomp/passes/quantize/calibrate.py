"""Ranges of activations for static quantization, measured on real samples in bounded memory."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import onnx_ir as ir

from onnxcomp.activations import Histogram, observe
from onnxcomp.activations.statistics import Statistic
from onnxcomp.data import Batches
from onnxcomp.errors import CalibrationError, UsageError
from onnxcomp.passes.base import Context
from onnxcomp.passes.quantize import ranges
from onnxcomp.passes.quantize.peaks import Peaks

#: their kernels give float32 for nothing; what follows (bias, activation) is more accurate, and as fast
FLOAT_OUTPUT = ("Gemm", "MatMul")

#: they are quantized where what they take is, not for themselves
ABSORBED = {"Clip", "Relu"}

#: {tensor: (low, high)}
Ranges = Mapping[str, ranges.Ends]


def measure(
    model: ir.Model,
    op_types: Collection[str],
    data: Batches,
    context: Context,
    method: str,
    *,
    excluded: Collection[str] = (),
) -> Ranges:
    """The range of every float tensor that nodes of these types read or write, in the main graph.

    Nodes named in `excluded` do not count, tensors without elements have no range. `method` is one of
    `ranges.METHODS`.

    Raises CalibrationError for NaN and infinity, and where one sample stretches the range of a tensor that will
    be quantized so far that half of the samples would round to zero; UsageError for another method.
    """
    if method not in ranges.METHODS:
        known = ", ".join(ranges.METHODS)
        raise UsageError(f"'{method}' is no way to choose ranges", where="calibration", hint=f"there are {known}")
    nodes = [n for n in model.graph if n.op_type in op_types and not n.domain and n.name not in excluded]
    quantized = _tensors(nodes)
    followed = _followed(nodes, quantized)
    peaks = {name: Peaks() for name in quantized if name not in followed}
    # of what stays in float, the ends only tell that it has elements
    seen = {} if method == "minmax" else {name: Histogram() for name in peaks if quantized[name]}
    wanted: dict[str, list[Statistic]] = {n: [p, seen[n]] if n in seen else [p] for n, p in peaks.items()}
    observe(model, data, wanted, workdir=context.workdir, store=context.store)
    found = {}
    for name, peak in peaks.items():
        if peak.low <= peak.high:
            found[name] = ranges.METHODS[method](seen[name]) if name in seen else _ends(peak)
            if quantized[name]:
                _judge(name, peak, found[name], data, context)
    return found | {name: found[after] for name, after in followed.items() if after in found}


def _ends(peak: Peaks) -> ranges.Ends:
    return min(peak.low, 0.0), max(peak.high, 0.0)


def _judge(name: str, peak: Peaks, ends: ranges.Ends, data: Batches, context: Context) -> None:
    """Range sanity: a wild sample is refused, a range of nothing but zero noted."""
    low, high = ends
    if low == high:
        context.note(f"tensor {name} is zero on all calibration samples: its range is degenerate")
        return
    if not peak.vanish(low, high):
        return
    reach = max(-low, high)
    text = f"the range of an activation reaches {reach:.3g}, but half of the samples stay below {peak.usual:.3g}"
    if peak.rows != data.samples:  # the first axis is not that of the samples: it may be meant so
        context.note(f"{text.replace('samples', 'rows')}, and round to zero: tensor {name}")
        return
    raise CalibrationError(
        f"{text} and would round to zero",
        where=f"{data.source.name}: sample {data.index_in_source(peak.largest)}, tensor {name}",
        hint="remove or repair the sample; or leave the layer in float with --exclude",
    )


def _tensors(nodes: Sequence[ir.Node]) -> dict[str, bool]:
    """{tensor: whether it will be quantized}."""
    found: dict[str, bool] = {}
    for node in nodes:
        takes = node.op_type not in ABSORBED
        gives = takes and node.op_type not in FLOAT_OUTPUT
        for value, quantized in [*((v, takes) for v in node.inputs), *((v, gives) for v in node.outputs)]:
            if value is not None and value.name and value.const_value is None and _may_be_float(value):
                found[value.name] = found.get(value.name, False) or quantized
    for node in nodes:
        first, given = node.inputs[0], node.outputs[0].name
        if node.op_type in ABSORBED and first is not None and given in found:
            found[given] = found[given] or found.get(first.name or "", False)
    return found


def _followed(nodes: Sequence[ir.Node], tensors: Collection[str]) -> dict[str, str]:
    """{tensor that only a Relu or Clip reads: what becomes of it}: ORT gives both the range of the latter."""
    found: dict[str, str] = {}
    for node in reversed(nodes):
        first, given = node.inputs[0], node.outputs[0].name or ""
        if node.op_type not in ABSORBED or first is None or len(first.uses()) != 1:
            continue
        if first.name and {first.name, given} <= set(tensors):
            found[first.name] = found.get(given, given)
    return found


def _may_be_float(value: ir.Value) -> bool:
    return value.dtype is None or value.dtype == ir.DataType.FLOAT
