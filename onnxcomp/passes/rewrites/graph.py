"""What the rewrites ask of a node's surroundings, and how they put another node in its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

#: a size that is known, or None
Sizes = list[int | None]


def sizes_of(value: ir.Value | None) -> Sizes | None:
    """The shape, None for sizes that are symbols."""
    if value is None:
        return None
    stored = array_of(value)
    shape = value.shape if stored is None else stored.shape
    return None if shape is None else [size if isinstance(size, int) else None for size in shape]


def array_of(value: ir.Value | None) -> np.ndarray | None:
    """What is stored, in an initializer that nobody overrides or in a Constant node."""
    if value is None or value.is_graph_input():
        return None
    maker = value.producer()
    if maker is None:
        tensor = value.const_value if value.is_initializer() else None
    elif maker.op_type == "Constant" and not maker.domain and "value" in maker.attributes:
        tensor = maker.attributes["value"].as_tensor()
    else:
        return None
    return None if tensor is None or tensor.dtype == ir.DataType.STRING else tensor.numpy()


def only_maker(node: ir.Node, at: int = 0) -> ir.Node | None:
    """The node of onnx's own domain that makes an input which nobody else uses."""
    value = node.inputs[at]
    maker = None if value is None else value.producer()
    if value is None or maker is None or maker.domain or maker.graph is not node.graph:
        return None
    return None if len(value.uses()) != 1 or value.is_graph_output() else maker


def constant(node: ir.Node, array: np.ndarray) -> ir.Value:
    """A Constant in front of the node; simplify makes it an initializer later on."""
    made = ir.node("Constant", [], {"value": ir.Tensor(array)})
    made.outputs[0].type, made.outputs[0].shape = (
        ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        ir.Shape(array.shape),
    )
    assert node.graph is not None
    node.graph.insert_before(node, made)
    return made.outputs[0]


def replace(
    node: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, Any] | None = None,
    *,
    name: str | None = None,
) -> bool:
    """Put another node in the place of this one; what it makes keeps its name."""
    made = ir.node(op_type, inputs, attributes, name=name or node.name)
    old, new = node.outputs[0], made.outputs[0]
    assert node.graph is not None
    node.graph.insert_before(node, made)
    new.type, new.shape = old.type, old.shape
    new.name, old.name = old.name, None
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    node.graph.remove(node, safe=True)
    return True
