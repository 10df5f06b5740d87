"""Shapes of a graph in which ORT's optimizer would miss its int8 kernels, written differently.

Where it misses one, the weight is dequantized at each run: several times slower than float.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxcomp.inspect import infer_shapes
from onnxcomp.passes.quantize.linear import Linear, linear, only_user
from onnxcomp.passes.quantize.names import free, initializer


def make_reachable(model: ir.Model) -> None:
    """Change the main graph in place; it computes the same.

    1. Gemm whose summand is computed, or is stored with a value for each row, becomes MatMul and Sum: QGemm
       takes a stored bias only. (ORT would make a Gemm of MatMul and Add again.)
    2. A stored summand of Gemm that is one row or one number becomes (out,): ORT's quantizer fails on others.
    3. MatMul of two axes and Add, which simplifying did not make a Gemm, become MatMul and Sum, as in 1.
    4. MatMul of more than two axes, all of known size, and Add of a bias: ORT makes them one Gemm in float
       before it looks for Q/DQ. A bias of as many axes as the product keeps it from that.
    """
    for node in list(model.graph):
        if node.op_type == "Gemm" and not node.domain and len(node.inputs) > 2:
            _flatten_bias(model, node)
            _split(model, node)
    shapes = _shapes(infer_shapes(model.clone()))
    for node in list(model.graph):
        if node.op_type == "MatMul" and linear(node) is not None:
            shape = shapes.get(node.outputs[0].name)
            if shape is not None and len(shape) == 2:
                _add_as_sum(model, node)
            elif shape is not None and shape.is_static():
                _widen_bias(model, node, len(shape))


def _flatten_bias(model: ir.Model, node: ir.Node) -> None:
    tensor = _stored(node.inputs[2])
    weight = _stored(node.inputs[1])
    if tensor is None or weight is None or len(tensor.shape) == 1 < tensor.size or len(weight.shape) != 2:
        return
    columns = weight.shape.numpy()[0 if node.attributes.get_int("transB", 0) else 1]
    shape = tensor.shape.numpy()
    if tensor.size not in (1, columns) or shape == (columns,) or (shape and tensor.size != shape[-1]):
        return
    row = np.ascontiguousarray(np.broadcast_to(tensor.numpy().reshape(-1), (columns,)))
    name = f"{_name_of(node.inputs[2])}_row"
    node.replace_input_with(2, initializer(model, name, ir.Tensor(row)))


def _split(model: ir.Model, node: ir.Node) -> None:
    summand, found = node.inputs[2], linear(node)
    if summand is None or found is None:
        return
    held, beta = _stored(summand), node.attributes.get_float("beta", 1.0)
    takes = beta == 1.0 if held is None else len(held.shape) > 1
    if not takes or not _turn(found):
        return
    if held is not None and beta != 1.0:
        summand = initializer(model, f"{summand.name}_scaled", ir.Tensor(np.float32(beta) * held.numpy()))
    product = ir.node("MatMul", [found.input, found.stored], name=node.name)
    product.outputs[0].name = free(model, f"{node.outputs[0].name}_product")
    product.metadata_props.update(node.metadata_props)
    model.graph.insert_before(node, product)
    _put_sum(model, node, [product.outputs[0], summand], free(model, f"{node.name}_Sum"))


def _turn(found: Linear) -> bool:
    """Store the matrix as (in, out); False where other nodes need it as it is."""
    if found.transposed and found.shared:
        return False
    if found.transposed:
        matrix = np.ascontiguousarray(found.matrix())
        found.stored.const_value = ir.Tensor(matrix, name=found.stored.name)
        found.stored.shape = ir.Shape(matrix.shape)
    return True


def _add_as_sum(model: ir.Model, node: ir.Node) -> None:
    add = _added(model, node)
    if add is not None:
        _put_sum(model, add, list(add.inputs), add.name or "")


def _put_sum(model: ir.Model, node: ir.Node, summands: list[ir.Value | None], name: str) -> None:
    """Let a Sum of these stand for the node."""
    total = ir.node("Sum", summands, name=name)
    total.metadata_props.update(node.metadata_props)
    model.graph.insert_before(node, total)
    out, made = node.outputs[0], total.outputs[0]
    made.type, made.shape = out.type, out.shape
    wanted = out.name
    out.replace_all_uses_with(made, replace_graph_outputs=True)
    model.graph.remove(node, safe=True)
    made.name = wanted


def _widen_bias(model: ir.Model, node: ir.Node, rank: int) -> None:
    add = _added(model, node)
    if add is None:
        return
    index = 1 if add.inputs[0] is node.outputs[0] else 0
    tensor = _stored(add.inputs[index])
    if tensor is None or len(tensor.shape) != 1:
        return
    array = tensor.numpy().reshape(*[1] * (rank - 1), -1)
    name = f"{_name_of(add.inputs[index])}_of_{add.name}"
    add.replace_input_with(index, initializer(model, name, ir.Tensor(array)))


def _added(model: ir.Model, node: ir.Node) -> ir.Node | None:
    """The Add of the main graph that alone uses what the node makes."""
    add = only_user(node.outputs[0])
    return add if add is not None and add.op_type == "Add" and not add.domain and add.graph is model.graph else None


def _stored(value: ir.Value | None) -> ir.TensorProtocol | None:
    return value.const_value if value is not None and value.producer() is None else None


def _name_of(value: ir.Value | None) -> str:
    return value.name or "" if value is not None else ""


def _shapes(model: ir.Model) -> dict[str | None, ir.Shape | None]:
    """Those of the values that nodes of the main graph make."""
    return {value.name: value.shape for node in model.graph for value in node.outputs}
