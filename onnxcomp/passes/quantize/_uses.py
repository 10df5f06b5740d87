"""How nodes use a stored matrix, and what they become once it is stored in blocks of 4 or 8 bits."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import onnx_ir as ir

MICROSOFT = "com.microsoft"

#: how a node reads a matrix: rows by index, or as a factor whose sums run along its columns or its rows
Layout = Literal["table", "columns", "rows"]


@dataclasses.dataclass(frozen=True)
class Use:
    """A node that can read its weight in blocks."""

    node: ir.Node
    layout: Layout


def users(value: ir.Value) -> list[tuple[ir.Node, int, bool]]:
    """(node, input, whether turned) of all users; through a Transpose that turns a matrix."""
    found = []
    for node, index in value.uses():
        behind = list(node.outputs[0].uses()) if _turns(node) else []
        found += [(user, i, True) for user, i in behind] or [(node, index, False)]
    return found


def _turns(node: ir.Node) -> bool:
    if node.op_type != "Transpose" or node.domain or node.outputs[0].is_graph_output():
        return False
    return tuple(node.attributes.get_ints("perm", (1, 0)) or ()) == (1, 0)


def use(node: ir.Node, index: int, turned: bool) -> Use | str:
    """What becomes of a Gather, Gemm or MatMul that reads a matrix as input `index`; or why it cannot."""
    if node.op_type == "Gather":
        if index != 0 or turned or node.attributes.get_int("axis", 0) != 0:
            return "Gather along another axis than the first of a stored table"
        return Use(node, "table")
    if index != 1:
        return f"it is not the second factor of the {node.op_type}"
    if node.op_type == "Gemm":
        factors = [node.attributes.get_float(key, 1.0) for key in ("alpha", "beta")]
        if factors != [1.0, 1.0] or node.attributes.get_int("transA"):
            return "a Gemm with alpha, beta or transA"
        turned = turned != bool(node.attributes.get_int("transB"))
    return Use(node, "rows" if turned else "columns")


def gather(node: ir.Node, stored: Sequence[ir.Value], attributes: dict[str, int]) -> None:
    """Make a Gather a GatherBlockQuantized; `stored`: numbers, scales and, where there are, zero points."""
    numbers, *others = stored
    attributes = {"gather_axis": 0, "quantize_axis": 1, **attributes}
    _become(node, "GatherBlockQuantized", [numbers, node.inputs[1], *others], attributes)


def multiply(node: ir.Node, stored: Sequence[ir.Value], attributes: dict[str, int]) -> None:
    """Make a MatMul or Gemm a MatMulNBits, an Add behind it for the bias of a Gemm."""
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    inputs = [node.inputs[0], *stored]
    if bias is None:
        _become(node, "MatMulNBits", inputs, attributes)
        return
    assert node.graph is not None
    product = ir.Node("", "MatMul", [], name=f"{node.name}_MatMul", metadata_props=dict(node.metadata_props))
    _become(product, "MatMulNBits", inputs, attributes)
    product.outputs[0].name = f"{node.outputs[0].name}_MatMul"
    node.graph.insert_before(node, product)
    _become(node, "Add", [product.outputs[0], bias], {}, domain="")


def _become(
    node: ir.Node, op_type: str, inputs: list[ir.Value | None], attributes: dict[str, int], *, domain: str = MICROSOFT
) -> None:
    """Make a node another one with the same outputs."""
    node.domain, node.op_type = domain, op_type
    node.attributes.clear()
    node.attributes.update({key: ir.AttrInt64(key, number) for key, number in attributes.items()})
    node.resize_inputs(len(inputs))
    for index, value in enumerate(inputs):
        node.replace_input_with(index, value)
