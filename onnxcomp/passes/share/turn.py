"""How what reads a matrix can read its transpose instead, so that one of both need not be stored."""

from __future__ import annotations

import onnx_ir as ir

from onnxcomp.passes.quantize.names import free

_FLAGS = ("transA", "transB")
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)


def why_not(node: ir.Node, index: int, stored: ir.Value) -> str | None:
    """Why a node cannot read the transpose of `stored`, its input `index`; None where it can."""
    assert stored.const_value is not None
    able = turns_freely(node, index) or (_is(node, "MatMul") and stored.const_value.dtype in _FLOATS)
    return None if able else f"{node.op_type} can read it only as it is stored"


def turns_freely(node: ir.Node, index: int) -> bool:
    """Whether a reader needs no Transpose for that: Gemm has flags, and a Transpose goes."""
    return _turns(node) or (_is(node, "Gemm") and index < 2)


def read_turned(model: ir.Model, stored: ir.Value, other: ir.Value) -> None:
    """Let all that reads `stored` read `other`, its transpose in the main graph; `why_not` must be None for each.

    Gemm turns a flag; a Transpose goes; MatMul reads a Transpose of `other`, one for all of them.
    """
    turned: ir.Value | None = None
    for node, index in list(stored.uses()):
        if _turns(node):
            node.outputs[0].replace_all_uses_with(other)
            assert node.graph is not None
            node.graph.remove(node, safe=True)
        elif node.op_type == "Gemm":
            flag = _FLAGS[index]
            node.attributes[flag] = ir.AttrInt64(flag, 1 - (node.attributes.get_int(flag, 0) or 0))
            node.replace_input_with(index, other)
        else:
            turned = turned or _transpose(model, other)
            node.replace_input_with(index, turned)


def _transpose(model: ir.Model, value: ir.Value) -> ir.Value:
    name = free(model, f"{value.name}_turned")
    made = ir.node("Transpose", [value], {"perm": (1, 0)}, name=name)
    made.outputs[0].name = name
    model.graph.insert_before(next(iter(model.graph)), made)
    return made.outputs[0]


def _is(node: ir.Node, op_type: str) -> bool:
    return node.op_type == op_type and not node.domain


def _turns(node: ir.Node) -> bool:
    if not _is(node, "Transpose") or node.outputs[0].is_graph_output():
        return False
    return tuple(node.attributes.get_ints("perm", (1, 0)) or ()) == (1, 0)
