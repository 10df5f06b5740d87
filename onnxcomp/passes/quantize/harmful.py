"""Nodes that alone spoil an output in int8: often a few small ones, near the input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from onnxcomp.errors import CalibrationError
from onnxcomp.passes.base import Context
from onnxcomp.passes.quantize import _ort, calibrate
from onnxcomp.passes.quantize.damage import Emulation
from onnxcomp.passes.quantize.emulate import Rounding
from onnxcomp.passes.quantize.linear import only_user
from onnxcomp.passes.quantize.targets import Target, static_targets

#: samples that tell; a node that destroys outputs does so on any
_SAMPLES = 16


def find(
    model: ir.Model, request: _ort.Request, ranges: calibrate.Ranges, context: Context, limit: float
) -> Mapping[str, str]:
    """{node of the main graph: why it is to stay in float} of those that change an output by more than `limit`.

    A Relu or Clip that an int8 kernel takes in rounds what that kernel gives: both stay in float.
    """
    if context.data is None:
        raise CalibrationError("no samples that could tell", where="data")
    targets = [t for t in static_targets(model, request.op_types, set(request.exclude)) if not t.nested]
    if not targets:
        return {}
    types = set(request.op_types) if request.per_channel else {"Gather"}  # tables have a scale for each column
    rounding = Rounding(types, request.reduce_range, ranges)
    data = context.data
    samples = data if data.samples <= _SAMPLES else data.split(_SAMPLES / data.samples)[0]
    found = Emulation(model, targets, rounding, context).harmful(samples, limit)
    reasons = {targets[i].node: _why(error) for i, error in found.items()}
    return reasons | {name: reasons[after] for name, after in _taken_in(model, targets).items() if after in reasons}


def _taken_in(model: ir.Model, targets: Sequence[Target]) -> Mapping[str, str]:
    """{target whose output is not rounded: the Relu or Clip behind it, whose output is}."""
    nodes = {node.name: node for node in model.graph}
    found = {}
    for target in targets:
        user = only_user(nodes[target.node].outputs[0])
        if target.op not in calibrate.FLOAT_OUTPUT and user is not None and user.op_type in calibrate.ABSORBED:
            found[target.node] = user.name or ""
    return found


def _why(error: float) -> str:
    return f"alone it changes an output by {error:.2g} of its size: see max_node_error"
