"""How a node that reads a matrix can read its transpose instead, so that one of both need not be stored."""

from __future__ import annotations

import onnx_ir as ir

from onnxcomp.passes.quantize._uses import MICROSOFT

#: Gemm needs no third input from here on
_GEMM_OPSET = 11

_FLAGS = ("transA", "transB")
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)


def why_not(node: ir.Node, index: int, stored: ir.Value, rank: int | None, opset: int) -> str | None:
    """Why a node cannot read the transpose of its input `index`; None where it can.

    Args:
        node: a reader of `stored`.
        index: which of its inputs.
        stored: a matrix.
        rank: axes of its other factor, where known.
        opset: of the default domain.
    """
    assert stored.const_value is not None
    dtype = stored.const_value.dtype
    if _turns(node) or (_is(node, "Gemm") and index < 2):
        return None
    if not _is(node, "MatMul") or dtype not in _FLOATS:
        return f"{node.op_type} can read it only as it is stored"
    if rank == 2:
        return None if opset >= _GEMM_OPSET else f"a Gemm without a bias needs opset {_GEMM_OPSET}"
    if index == 1 and rank is not None and rank > 2 and dtype == ir.DataType.FLOAT:
        return None
    return (
        "a MatMul whose other factor is not known to have two axes"
        if rank is None
        else (f"a MatMul whose other factor has {rank} axes")
    )


def read_turned(model: ir.Model, node: ir.Node, index: int, other: ir.Value, rank: int | None) -> None:
    """Let a node read `other`, the transpose of its input `index`; `why_not` must be None.

    Gemm turns a flag; MatMul by a matrix becomes Gemm, or FusedMatMul of com.microsoft where it multiplies more
    than rows; a Transpose goes.
    """
    if _turns(node):
        node.outputs[0].replace_all_uses_with(other)
        assert node.graph is not None
        node.graph.remove(node, safe=True)
        return
    if node.op_type == "MatMul":
        node.op_type = "Gemm"
        if rank != 2:
            node.op_type, node.domain = "FusedMatMul", MICROSOFT
            model.opset_imports.setdefault(MICROSOFT, 1)
    flag = _FLAGS[index]
    node.attributes[flag] = ir.AttrInt64(flag, 1 - (node.attributes.get_int(flag, 0) or 0))
    node.replace_input_with(index, other)


def _is(node: ir.Node, op_type: str) -> bool:
    return node.op_type == op_type and not node.domain


def _turns(node: ir.Node) -> bool:
    if not _is(node, "Transpose") or node.outputs[0].is_graph_output():
        return False
    return tuple(node.attributes.get_ints("perm", (1, 0)) or ()) == (1, 0)
