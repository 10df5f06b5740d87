"""Initializers as the weights of nodes: which are one node's alone, and other numbers in their place."""

from __future__ import annotations

from typing import TypeGuard

import numpy as np
import onnx_ir as ir

#: tensors of this many bytes and more are computed when they are read
_LAZY_FROM = 1 << 20


def is_weight(value: ir.Value | None) -> TypeGuard[ir.Value]:
    """Whether it holds float32 numbers, at least one."""
    return (
        value is not None
        and value.producer() is None
        and value.const_value is not None
        and value.const_value.dtype == ir.DataType.FLOAT
        and value.const_value.size > 0
    )


def is_alone(value: ir.Value) -> bool:
    """Whether one node uses the value, once, and the graph does not give it out."""
    return len(value.uses()) == 1 and not value.is_graph_output()


def is_own_vector(value: ir.Value | None, size: int) -> TypeGuard[ir.Value]:
    """Whether it holds so many float32 numbers, (size,), for one node alone."""
    return is_weight(value) and list(tensor_of(value).shape.numpy()) == [size] and is_alone(value)


def tensor_of(value: ir.Value) -> ir.TensorProtocol:
    """What an initializer holds."""
    tensor = value.const_value
    assert tensor is not None
    return tensor


def multiply(value: ir.Value, factors: np.ndarray, axis: int = -1) -> None:
    """Multiply what is stored by (size of the axis,) along the axis; a large tensor whenever it is read.

    The product is rounded to float32 once, from float64.
    """
    old = tensor_of(value)
    shape = [1] * len(old.shape)
    shape[axis] = -1
    wide = factors.reshape(shape)

    def make() -> ir.TensorProtocol:
        product = np.empty(old.shape.numpy(), np.float32)
        return ir.Tensor(np.multiply(old.numpy(), wide, out=product, casting="same_kind"), name=old.name)

    large = old.nbytes >= _LAZY_FROM
    shape_of = ir.Shape(old.shape.numpy())
    value.const_value = ir.LazyTensor(make, old.dtype, shape_of, name=old.name) if large else make()
