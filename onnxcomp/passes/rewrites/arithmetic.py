"""Rewrites that fold stored numbers into each other: exact but for the rounding."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxcomp.passes.rewrites.graph import array_of, constant, only_maker, replace, sizes_of

#: factors of which two may become one: no product leaves the range of float32, or falls below it
_SMALLEST, _LARGEST = 2.0**-30, 2.0**30

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)


def neutral(node: ir.Node, opset: int) -> bool:
    """Plus zeros, times ones; a stored tensor that cannot widen the other one."""
    del opset
    nothing = 0 if node.op_type in ("Add", "Sub") else 1
    for at in (1, 0) if node.op_type in ("Add", "Mul") else (1,):
        stored, other = array_of(node.inputs[at]), node.inputs[1 - at]
        sizes = None if stored is None else sizes_of(other)
        if stored is None or sizes is None or stored.ndim > len(sizes) or not (stored == nothing).all():
            continue
        aligned = zip(reversed(stored.shape), reversed(sizes), strict=False)
        if all(mine in (1, theirs) for mine, theirs in aligned):
            return replace(node, "Identity", [other])
    return False


def factor_of_factor(node: ir.Node, opset: int) -> bool:
    """Two stored factors are one, if that makes no larger tensor and cannot overflow."""
    del opset
    maker = only_maker(node)
    at = 0
    if maker is None or maker.op_type != "Mul":
        maker, at = only_maker(node, 1), 1
    if maker is None or maker.op_type != "Mul":
        return False
    inner_at = next((i for i in (1, 0) if array_of(maker.inputs[i]) is not None), None)
    outer = array_of(node.inputs[1 - at])
    if inner_at is None or outer is None:
        return False
    inner = array_of(maker.inputs[inner_at])
    if inner is None or inner.dtype.kind != "f" or not (_moderate(inner) and _moderate(outer)):
        return False
    product = inner.astype(np.float64) * outer.astype(np.float64)
    freed = sum(
        a.size for a, v in ((inner, maker.inputs[inner_at]), (outer, node.inputs[1 - at])) if v and len(v.uses()) == 1
    )
    if product.size > max(freed, 1):
        return False
    return replace(node, "Mul", [maker.inputs[1 - inner_at], constant(node, product.astype(inner.dtype))])


def bias_of_conv(node: ir.Node, opset: int) -> bool:
    """A stored number per channel that is added to a Conv belongs into its bias."""
    del opset
    for at in (0, 1):
        conv, added = only_maker(node, at), array_of(node.inputs[1 - at])
        if conv is None or conv.op_type not in ("Conv", "ConvTranspose") or added is None:
            continue
        weight = array_of(conv.inputs[1])
        old = conv.inputs[2] if len(conv.inputs) > 2 else None
        stored = array_of(old)
        if weight is None or (old is not None and stored is None) or added.dtype != weight.dtype:
            continue
        groups = conv.attributes.get_int("group", 1)
        channels = weight.shape[0] if conv.op_type == "Conv" else weight.shape[1] * groups
        shape = (1,) * (weight.ndim - added.ndim) + added.shape
        if len(shape) != weight.ndim or shape[1] not in (1, channels) or added.size != shape[1]:
            continue
        bias = np.broadcast_to(added.reshape(-1), (channels,)) + (0 if stored is None else stored)
        inputs = [*conv.inputs[:2], constant(node, bias.astype(weight.dtype))]
        return replace(node, conv.op_type, inputs, dict(conv.attributes.items()), name=conv.name)
    return False


def bias_of_matmul(node: ir.Node, opset: int) -> bool:
    """MatMul of two matrices, and Add: Gemm. A stored bias has one axis, or ORT's quantizer stumbles."""
    del opset
    for at in (0, 1):
        maker, bias = only_maker(node, at), node.inputs[1 - at]
        if maker is None or maker.op_type != "MatMul" or bias is None or bias.dtype not in _FLOATS:
            continue
        left, right, added = (sizes_of(v) for v in (*maker.inputs, bias))
        if left is None or right is None or added is None or len(left) != 2 or len(right) != 2 or len(added) > 2:
            continue
        if any(a is None or a not in (1, b) for a, b in zip(reversed(added), (right[1], left[0]), strict=False)):
            continue
        array = array_of(bias)
        if array is not None and array.shape != (right[1],):
            if array.size != right[1]:
                continue
            bias = constant(node, array.reshape(-1))
        return replace(node, "Gemm", [*maker.inputs, bias], name=maker.name)
    return False


def _moderate(array: np.ndarray) -> bool:
    size = np.abs(array.astype(np.float64))
    return bool(((size == 0) | ((size > _SMALLEST) & (size < _LARGEST))).all())
