"""`quantize-static`: int8 weights and activations, with ranges measured on real data."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from onnxcomp.data import Batches
from onnxcomp.errors import CalibrationError, UsageError
from onnxcomp.passes.base import Context, Effect, Pass, option
from onnxcomp.passes.quantize import _ort, calibrate, common, harmful, kernels, policy, shared, tied

#: operators that hold weights (quantizing all others too destroys accuracy on real models), and those that an
#: int8 Conv absorbs: with Relu and Clip a detector ran 2.4 times faster than float, without 1.8. Operators
#: between int8 kernels (Concat, Resize, pools, moves) made six CNNs neither faster nor smaller
OP_TYPES = ("Clip", "Conv", "ConvTranspose", "Gather", "Gemm", "MatMul", "MaxPool", "Relu")

_FEW = 32

_IDLE = "int8 does not pay there"
_EMPTY = "a tensor without elements has no range"


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizeStatic(Pass):
    """Write Q/DQ pairs that ORT runs as int8: weights int8, activations uint8.

    Activations are unsigned, since signed ones are several times slower on x86. By default only
    operators that hold weights are quantized, with the activation functions that ORT fuses into
    them. Nodes that alone spoil an output are found on some samples and left in float. The data must
    be like what the model will see.
    """

    name: ClassVar[str] = "quantize-static"
    needs_data: ClassVar[bool] = True

    op_types: tuple[str, ...] | None = option(
        None, f"operator types to quantize, everywhere; unset: {', '.join(OP_TYPES)}, but no MatMul of two activations"
    )
    exclude: tuple[str, ...] = option((), "nodes, or torch modules ('encoder.layer.3'), to leave in float")
    calibration: Literal["minmax", "percentile", "entropy", "mse"] = option(
        "percentile", "how activation ranges are chosen; percentile leaves out 1 value of 100,000 at either end"
    )
    max_node_error: float | None = option(
        0.25,
        "leave a node in float that alone changes an output by more than this share of its size (0.25: 12 dB), "
        "measured on 16 samples; 0 looks at none",
    )
    per_channel: bool = option(True, "one scale per output channel instead of one per tensor")
    reduce_range: bool | None = option(
        None, "7-bit weights for CPUs without VNNI; unset: decided by this host, and noted"
    )

    def apply(self, model: ir.Model, context: Context) -> Effect:
        """Raises what `common.prepare` raises; CalibrationError for data that cannot calibrate; UsageError."""
        if self.max_node_error is not None and not self.max_node_error >= 0:  # nan too
            raise UsageError(f"max_node_error {self.max_node_error} is not 0 or more", where="max_node_error")
        if context.data is None:
            raise CalibrationError("static quantization needs data", where="data", hint="give --data")
        context.data.require_real("calibration")
        op_types = OP_TYPES if self.op_types is None else self.op_types
        _ort.check_op_types(op_types, static=True)
        _check_data(context.data)
        kept, fragile = common.prepare(model, context, self.exclude)
        kernels.make_reachable(model)
        request = _ort.Request(
            op_types=op_types,
            exclude=(*kept, *fragile),
            per_channel=self.per_channel,
            reduce_range=common.resolve_reduce_range(self.reduce_range, context),
        )
        ties = shared.untie(model, request)
        idle = policy.float_nodes(model, op_types, request.exclude) if self.op_types is None else []
        request = request.without(idle)
        ranges = calibrate.measure(
            model, op_types, context.data, context, self.calibration, excluded=set(request.exclude)
        )
        others = dict.fromkeys(idle, _IDLE) | dict.fromkeys(_without_range(model, request, ranges), _EMPTY)
        request = request.without(others)
        if self.max_node_error:
            others |= harmful.find(model, request, ranges, context, self.max_node_error)
            request = request.without(others)
        ledger = common.account(model, request, fragile, others)
        request = request.without(ledger.held_back)
        result = _ort.static(model, request, context, ranges)
        common.quantize_tables(result, request)
        settled = ledger.settle(result, context.notes)
        tied.merge(result, ties)
        common.finish(model, result, settled)
        samples = context.data.samples
        if samples < _FEW:
            context.note(f"calibrated on {samples} samples only; {_FEW} or more are advisable")
        return Effect(True, {**settled, "reduce_range": request.reduce_range, "calibration_samples": samples})


def _without_range(model: ir.Model, request: _ort.Request, ranges: calibrate.Ranges) -> list[str]:
    """Names of nodes that take or give float tensors of no elements: ORT returns numbers made up for them."""
    return [
        node.name or ""
        for node in model.graph
        if node.op_type in request.op_types
        and not node.domain
        and node.name not in request.exclude
        and any(_misses(v, ranges) for v in (*node.inputs, *node.outputs))
    ]


def _misses(value: ir.Value | None, ranges: calibrate.Ranges) -> bool:
    if value is None or value.const_value is not None or value.dtype != ir.DataType.FLOAT:
        return False
    return value.name not in ranges


def _check_data(data: Batches) -> None:
    """One pass over the feeds: NaN, infinity and constant inputs give useless ranges without a word."""
    ends: dict[str, tuple[float, float]] = {}
    samples = 0
    for batch in data:
        samples += batch.samples
        for name, array in batch.feeds.items():
            if array.dtype.kind not in "fiu" or array.size == 0:
                continue
            finite = np.isfinite(array)
            if not np.all(finite):
                rows = finite.reshape(len(array), -1).all(axis=1) if array.ndim else finite.reshape(1)
                sample = data.index_in_source(batch.start + (int(np.argmin(rows)) if len(rows) == batch.samples else 0))
                raise CalibrationError(
                    "the calibration data holds NaN or infinity",
                    where=f"{data.source.name}: {name}, sample {sample}",
                    hint="remove or repair the sample",
                )
            low, high = ends.get(name, (np.inf, -np.inf))
            ends[name] = (min(low, float(array.min())), max(high, float(array.max())))
    if samples == 0:
        raise CalibrationError("the calibration data holds no samples", where=data.source.name)
    if ends and all(low == high for low, high in ends.values()):
        raise CalibrationError(
            "the calibration data is constant: activation ranges would be degenerate",
            where=f"{data.source.name}: {', '.join(ends)}",
            hint="give samples like those the model will see",
        )
