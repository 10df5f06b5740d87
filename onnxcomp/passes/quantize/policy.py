"""Which nodes besides those with weights static quantization takes: those between int8 kernels.

A Q/DQ pair around a lone Concat costs time and accuracy; between two int8 Convs it saves both
conversions and three quarters of the memory traffic. So an operator without weights is quantized where its
inputs come from int8 kernels and its output goes to one.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from onnxcomp.inspect import constants

#: their int8 kernels give int8; those of MatMul and Gemm give float32
_GIVE_INT8 = {"Conv", "ConvTranspose"}

_WEIGHTY = {*_GIVE_INT8, "Gemm", "MatMul"}

#: activation functions that ORT takes into the Conv before, whatever follows
_ABSORBED = {"Clip", "Relu"}

#: operators without weights that only move numbers, or choose or average them. Add is none of them: in int8 it
#: cost a residual net 6 dB and made it no faster
BETWEEN = (
    "AveragePool", "Concat", "Flatten", "GlobalAveragePool", "MaxPool", "Reshape", "Resize", "Squeeze",
    "Transpose", "Unsqueeze",
)  # fmt: skip


def float_nodes(model: ir.Model, op_types: Collection[str], excluded: Collection[str]) -> list[str]:
    """Names of nodes of these types that do not pay in int8, so that they stay in float.

    A MatMul of two activations is among them: attention's are short, and not robust.
    """
    stored = {value for value, _ in constants(model)}
    wanted = [n for n in model.graph if n.op_type in op_types and not n.domain and n.name not in excluded]
    taken: set[ir.Node | None] = set()
    for node in wanted:  # in the order of the graph: what comes before is decided
        if node.op_type in _WEIGHTY:
            pays = any(v in stored for v in node.inputs[1:2])
        elif node.op_type in _ABSORBED or node.op_type == "Gather":
            pays = True
        else:
            makers = [v.producer() for v in node.inputs if v is not None and _is_float(v) and v not in stored]
            pays = bool(makers) and all(maker in taken and _gives_int8(maker) for maker in makers)
            pays = pays and (node.op_type != "Resize" or node.attributes.get_string("mode", "nearest") == "nearest")
        if pays:
            taken.add(node)
    while True:  # what only float operators read gains nothing
        idle = [n for n in wanted if n in taken and n.op_type in BETWEEN and not _read_by(n, taken)]
        if not idle:
            return [n.name or "" for n in wanted if n not in taken]
        taken.difference_update(idle)


def _gives_int8(node: ir.Node | None) -> bool:
    return node is not None and node.op_type not in _WEIGHTY - _GIVE_INT8


def _read_by(node: ir.Node, taken: set[ir.Node | None]) -> bool:
    return any(use.node in taken for value in node.outputs for use in value.uses())


def _is_float(value: ir.Value) -> bool:
    return value.dtype in (None, ir.DataType.FLOAT) and bool(value.name)
