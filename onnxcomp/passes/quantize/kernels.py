"""Two shapes of a graph in which ORT's optimizer would miss its int8 kernels, written differently.

Where it misses one, the weight is dequantized at each run: several times slower than float.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxcomp.inspect import infer_shapes
from onnxcomp.passes.quantize.linear import linear, only_user


def make_reachable(model: ir.Model) -> None:
    """Change the main graph in place; it computes the same.

    1. Gemm whose summand is computed becomes MatMul and Sum: QGemm takes a stored bias only. (ORT would make
       a Gemm of MatMul and Add again.)
    2. MatMul of more than two axes, all of known size, and Add of a bias: ORT makes them one Gemm in float
       before it looks for Q/DQ. A bias of as many axes as the product keeps it from that.
    """
    for node in list(model.graph):
        if node.op_type == "Gemm" and not node.domain and len(node.inputs) > 2:
            _split(model, node)
    ranks = _ranks(infer_shapes(model.clone()))
    for node in list(model.graph):
        rank = ranks.get(node.outputs[0].name, 0)
        if node.op_type == "MatMul" and rank > 2 and linear(node) is not None:
            _widen_bias(model, node, rank)


def _split(model: ir.Model, node: ir.Node) -> None:
    summand = node.inputs[2]
    found = linear(node)
    if summand is None or summand.const_value is not None or found is None:
        return
    if node.attributes.get_float("beta", 1.0) != 1.0 or found.shared:
        return
    matrix = np.ascontiguousarray(found.matrix())
    found.stored.const_value = ir.Tensor(matrix, name=found.stored.name)
    found.stored.shape = ir.Shape(matrix.shape)
    product = ir.node("MatMul", [found.input, found.stored], name=node.name)
    add = ir.node("Sum", [product.outputs[0], summand], name=f"{node.name}_Sum")
    out = node.outputs[0]
    product.outputs[0].name = f"{out.name}_product"
    product.metadata_props.update(node.metadata_props)
    add.metadata_props.update(node.metadata_props)
    model.graph.insert_before(node, [product, add])
    name, add.outputs[0].type, add.outputs[0].shape = out.name, out.type, out.shape
    out.replace_all_uses_with(add.outputs[0], replace_graph_outputs=True)
    model.graph.remove(node, safe=True)
    add.outputs[0].name = name


def _widen_bias(model: ir.Model, node: ir.Node, rank: int) -> None:
    add = only_user(node.outputs[0])
    if add is None or add.op_type != "Add" or add.domain or add.graph is not model.graph:
        return
    index = 1 if add.inputs[0] is node.outputs[0] else 0
    bias = add.inputs[index]
    tensor = bias.const_value if bias is not None and bias.producer() is None else None
    if bias is None or tensor is None or len(tensor.shape) != 1:
        return
    array = tensor.numpy().reshape(*[1] * (rank - 1), -1)
    name = f"{bias.name}_of_{add.name}"
    wide = ir.Value(
        name=name,
        const_value=ir.Tensor(array, name=name),
        shape=ir.Shape(array.shape),
        type=ir.TensorType(tensor.dtype),
    )
    model.graph.register_initializer(wide)
    add.replace_input_with(index, wide)


def _ranks(model: ir.Model) -> dict[str | None, int]:
    """Axes of the values of the main graph whose sizes are all numbers."""
    shapes = {v.name: v.shape for node in model.graph for v in node.outputs}
    return {name: len(shape) for name, shape in shapes.items() if shape is not None and shape.is_static()}
