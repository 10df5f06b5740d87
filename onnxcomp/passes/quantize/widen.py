"""A float16 or bfloat16 graph made float32 inside, since ORT's int8 kernels give and take float32."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from onnxcomp.inspect import all_nodes

NARROW = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})

#: integer attributes that hold an element type
_TYPES = frozenset({"dtype", "output_datatype", "output_dtype", "to"})


def widen(model: ir.Model) -> None:
    """Make every float16 and bfloat16 value float32, in place; the same numbers, less rounding between them.

    Local functions are inlined. Inputs and outputs of the model keep their types, with Casts inside. Types of
    sequences and optional values stay as they are: ORT refuses such a model when it loads it.
    """
    common.InlinePass()(model)
    common.RemoveInitializersFromInputsPass()(model)
    main = model.graph
    faces = {value for value in main.inputs if value.dtype in NARROW}
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and tensor.dtype in NARROW:
                value.const_value = _wide(tensor)
                value.dtype = ir.DataType.FLOAT
        _set_types(graph.inputs if graph is not main else ())
    outputs = [(index, value.dtype) for index, value in enumerate(main.outputs) if value.dtype in NARROW]
    for node in all_nodes(model):
        _set_types(node.outputs)
        for name, attribute in list(node.attributes.items()):
            if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in NARROW:
                node.attributes[name] = ir.AttrTensor(name, _wide(attribute.as_tensor()))
            elif name in _TYPES and attribute.type == ir.AttributeType.INT and attribute.as_int() in NARROW:
                node.attributes[name] = ir.AttrInt64(name, ir.DataType.FLOAT)
    for value in faces:
        _cast_input(main, value)
    for index, dtype in outputs:
        _cast_output(main, index, dtype)


def _wide(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.Tensor(tensor.numpy().astype(np.float32), name=tensor.name)


def _set_types(values: Iterable[ir.Value]) -> None:
    for value in values:
        if value.dtype in NARROW and isinstance(value.type, ir.TensorType):
            value.dtype = ir.DataType.FLOAT


def _cast_input(graph: ir.Graph, value: ir.Value) -> None:
    cast = _cast(value, ir.DataType.FLOAT, f"{value.name}_float32")
    value.replace_all_uses_with(cast.outputs[0])
    cast.replace_input_with(0, value)
    first = next(iter(graph), None)
    if first is None:
        graph.append(cast)
    else:
        graph.insert_before(first, cast)


def _cast_output(graph: ir.Graph, index: int, dtype: ir.DataType | None) -> None:
    value = graph.outputs[index]
    assert dtype is not None
    if value.is_graph_input():
        return  # handed through: it has kept its type
    name = value.name
    value.name = f"{name}_float32"
    value.dtype = ir.DataType.FLOAT
    cast = _cast(value, dtype, name)
    graph.append(cast)
    graph.outputs[index] = cast.outputs[0]


def _cast(value: ir.Value, dtype: ir.DataType, name: str | None) -> ir.Node:
    cast = ir.node("Cast", [value], {"to": dtype}, name=f"{name}_Cast")
    made = cast.outputs[0]
    made.name, made.type, made.shape = name, ir.TensorType(dtype), value.shape
    return cast
