"""Products with a stored matrix in int8, the other factor quantized while running.

Written here, not by ORT's quantizer: that one holds three copies of all weights, here one float matrix at
a time is in memory. What it writes is the same, number for number.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from onnxcomp.passes.quantize import _ort
from onnxcomp.passes.quantize.names import free, initializer

#: a scale below it loses digits, or is 0; such a column becomes 0
_SMALLEST = float(np.finfo(np.float32).tiny)

#: matrices of this many bytes and more are rounded when they are written, these many rows at a time
_LAZY_FROM = 1 << 20
_ROWS = 256


@dataclasses.dataclass(frozen=True)
class _Rows:
    """What DynamicQuantizeLinear makes of a float tensor: uint8 numbers, and the scale and zero point of all."""

    numbers: ir.Value
    scale: ir.Value
    zero_point: ir.Value


@dataclasses.dataclass(frozen=True)
class _Matrix:
    """int8, (..., in, out), symmetric; the scale is of shape (out,), or ()."""

    numbers: ir.Value
    scale: ir.Value
    zero_point: ir.Value


def quantize_products(model: ir.Model, request: _ort.Request) -> None:
    """Make MatMul and Gemm by a stored float32 matrix MatMulInteger, in the main graph, in place.

    ORT fuses what is written, and an Add of a bias behind it, into one DynamicQuantizeMatMul. A Gemm that is
    more than product and bias must be among what the request excludes.
    """
    rows: dict[ir.Value, _Rows] = {}
    matrices: dict[tuple[ir.Value, bool], _Matrix] = {}
    for node in list(model.graph):
        if not _takes(node, request):
            continue
        factor, stored = node.inputs[0], node.inputs[1]
        assert factor is not None
        assert stored is not None
        turned = node.op_type == "Gemm" and bool(node.attributes.get_int("transB", 0))
        if factor not in rows:
            rows[factor] = _quantize_rows(model, node, factor)
        if (stored, turned) not in matrices:
            matrices[stored, turned] = _quantize_matrix(model, stored, turned, request)
        _multiply(model, node, rows[factor], matrices[stored, turned])
    for stored, _ in matrices:
        if not stored.uses() and not stored.is_graph_output():
            model.graph.initializers.pop(stored.name or "", None)


def _takes(node: ir.Node, request: _ort.Request) -> bool:
    if node.domain or node.op_type not in {"Gemm", "MatMul"} & set(request.op_types) or node.name in request.exclude:
        return False
    factor, stored = node.inputs[0], node.inputs[1]
    if factor is None or stored is None or stored.producer() is not None or stored.const_value is None:
        return False
    tensor = stored.const_value
    return tensor.dtype == ir.DataType.FLOAT and len(tensor.shape) > 1 and tensor.size > 0


def _quantize_rows(model: ir.Model, node: ir.Node, factor: ir.Value) -> _Rows:
    """Put the DynamicQuantizeLinear that all products with this factor share in front of the first."""
    made = ir.node("DynamicQuantizeLinear", [factor], num_outputs=3, name=free(model, f"{factor.name}_QuantizeLinear"))
    model.graph.insert_before(node, made)
    for value, ending in zip(made.outputs, ("quantized", "scale", "zero_point"), strict=True):
        value.name = free(model, f"{factor.name}_{ending}")
    return _Rows(*made.outputs)


def _quantize_matrix(model: ir.Model, stored: ir.Value, turned: bool, request: _ort.Request) -> _Matrix:
    tensor = stored.const_value
    assert tensor is not None
    peak = _peaks(tensor, turned) if request.per_channel else np.max(_peaks(tensor, turned))
    scale = (peak / np.float32(64 if request.reduce_range else 127)).astype(np.float32)
    scale = np.where(scale >= _SMALLEST, scale, np.float32(1))
    zero = np.zeros(scale.shape, np.int8)
    return _Matrix(
        initializer(model, f"{stored.name}_quantized", _rounded(f"{stored.name}_quantized", tensor, scale, turned)),
        initializer(model, f"{stored.name}_scale", ir.Tensor(scale)),
        initializer(model, f"{stored.name}_zero_point", ir.Tensor(zero)),
    )


def _peaks(tensor: ir.TensorProtocol, turned: bool) -> np.ndarray:
    """The largest magnitude of each column of the product: (out,)."""
    array = tensor.numpy()
    axes = (1,) if turned else tuple(range(array.ndim - 1))
    found: np.ndarray = np.maximum(array.max(axis=axes), -array.min(axis=axes))
    return found


def _rounded(name: str, tensor: ir.TensorProtocol, scale: np.ndarray, turned: bool) -> ir.TensorProtocol:
    """The matrix in steps of the scale, (..., in, out); a large one is rounded when it is written."""
    shape = tuple(int(size) for size in tensor.shape.numpy())
    shape = shape[::-1] if turned else shape

    def make() -> ir.TensorProtocol:
        array = tensor.numpy()
        rows = (array.T if turned else array).reshape(-1, shape[-1])
        numbers = np.empty(rows.shape, np.int8)
        for start in range(0, len(rows), _ROWS):
            numbers[start : start + _ROWS] = np.rint(rows[start : start + _ROWS] / scale)
        return ir.Tensor(numbers.reshape(shape), name=name)

    large = tensor.nbytes >= _LAZY_FROM
    return ir.LazyTensor(make, ir.DataType.INT8, ir.Shape(shape), name=name) if large else make()


def _multiply(model: ir.Model, node: ir.Node, rows: _Rows, matrix: _Matrix) -> None:
    """Put the product in int8 in a node's place: the patterns of nodes that ORT fuses."""
    out = node.outputs[0]
    name = node.name or node.op_type
    product = ir.node(
        "MatMulInteger",
        [rows.numbers, matrix.numbers, rows.zero_point, matrix.zero_point],
        name=free(model, f"{name}_quant"),
        metadata_props=dict(node.metadata_props),
    )
    cast = ir.node("Cast", product.outputs, {"to": ir.DataType.FLOAT}, name=free(model, f"{name}_cast"))
    scale = ir.node("Mul", [rows.scale, matrix.scale], name=free(model, f"{name}_scales"))
    scaled = ir.node("Mul", [cast.outputs[0], scale.outputs[0]], name=free(model, f"{name}_scaled"))
    made = [product, cast, scale, scaled]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        made.append(ir.node("Add", [scaled.outputs[0], bias], name=free(model, f"{name}_Add")))
    for part, ending in zip(made[:-1], ("integer", "float", "scales", "product"), strict=False):
        part.outputs[0].name = free(model, f"{out.name}_{ending}")
    model.graph.insert_before(node, made)
    last = made[-1].outputs[0]
    last.dtype, last.shape, wanted = ir.DataType.FLOAT, out.shape, out.name
    out.replace_all_uses_with(last, replace_graph_outputs=True)
    model.graph.remove(node, safe=True)
    last.name = wanted
