"""Names: free ones for what is put into a graph, and those that ORT's quantizer relies on.

It needs one of its own for every node, and none that it makes from another's: it calls the scale of a tensor
`w` 'w_scale', whatever is called so already, and the model then computes with the wrong numbers or does not load.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import onnx_ir as ir

from onnxcomp.errors import UnsupportedError
from onnxcomp.inspect import all_nodes

#: how names that the quantizer and this package derive from a tensor's go on
_DERIVED = re.compile(
    r"_(?:again|convert|found|quant|scale|turned|zero_point|DequantizeLinear|QuantizeLinear|Transposed|output_(?:quant|scale))"
)


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


def name_nodes(model: ir.Model) -> None:
    """Give every node a name of its own: the quantizer and the notes speak of nodes by name."""
    taken = {n.name for n in all_nodes(model)}
    seen: set[str] = set()
    for i, node in enumerate(all_nodes(model)):
        if not node.name or node.name in seen:
            name = f"{node.op_type}_{i}"
            while name in taken:
                name += "_"
            node.name = name
            taken.add(name)
        seen.add(node.name)


def set_apart(model: ir.Model) -> None:
    """Rename inner values whose names could be made from others'; inputs and outputs keep theirs.

    Raises UnsupportedError where both are inputs or outputs of the model.
    """
    faces = {value.name for value in (*model.graph.inputs, *model.graph.outputs)}
    held = {value.name: value for value in _values(model) if value.name}
    for name in list(held):
        for match in _DERIVED.finditer(name):
            base = name[: match.start()]
            if base not in held:
                continue
            if name in faces and base in faces:
                raise UnsupportedError(
                    f"an input or output has the name that ORT's quantizer makes from '{base}'",
                    where=f"tensor {name}",
                    hint="rename it before",
                )
            value = held.pop(base if name in faces else name)
            value.name = _free(f"own_{value.name}", held)
            held[value.name] = value
            break


def _free(name: str, held: dict[str, ir.Value]) -> str:
    while name in held:
        name += "_"
    return name


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from graph.inputs
        yield from graph.initializers.values()
    for node in all_nodes(model):
        yield from node.outputs
