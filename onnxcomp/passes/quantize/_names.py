"""Names for what is put into a graph."""

from __future__ import annotations

import onnx_ir as ir

from onnxcomp.inspect import all_nodes


def free(model: ir.Model, wanted: str) -> str:
    """`wanted`, with as many underscores behind it as make it the name of no node and no value yet."""
    taken = {value.name for value in model.graph.inputs} | set(model.graph.initializers)
    for node in all_nodes(model):
        taken.add(node.name)
        taken.update(value.name for value in node.outputs)
    while wanted in taken:
        wanted += "_"
    return wanted


def initializer(model: ir.Model, wanted: str, tensor: ir.TensorProtocol) -> ir.Value:
    """A new initializer of the main graph that holds the tensor, named like `wanted`."""
    value = ir.Value(
        name=free(model, wanted),
        const_value=tensor,
        shape=ir.Shape(tensor.shape.numpy()),
        type=ir.TensorType(tensor.dtype),
    )
    model.graph.register_initializer(value)
    return value
