"""Linear nodes: MatMul and Gemm with a stored matrix, read and written alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TypeGuard

import numpy as np
import onnx_ir as ir


@dataclasses.dataclass(frozen=True)
class Linear:
    """A MatMul or Gemm that multiplies rows with a stored matrix.

    Attributes:
        node: the node.
        transposed: whether the matrix is stored as (out, in).
    """

    node: ir.Node
    transposed: bool

    @property
    def input(self) -> ir.Value:
        """The rows: float32, (..., in)."""
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def stored(self) -> ir.Value:
        """The initializer."""
        value = self.node.inputs[1]
        assert value is not None
        return value

    @property
    def shared(self) -> bool:
        """Whether other nodes use the matrix too, or the graph gives it out."""
        return not _only_here(self.stored)

    def matrix(self) -> np.ndarray:
        """float32, (in, out)."""
        tensor = self.stored.const_value
        assert tensor is not None
        array: np.ndarray = tensor.numpy()
        return array.T if self.transposed else array

    def set_matrix(self, matrix: np.ndarray) -> None:
        """Store a matrix of the same shape, (in, out)."""
        array = np.ascontiguousarray(matrix.T if self.transposed else matrix, np.float32)
        self.stored.const_value = ir.Tensor(array, name=self.stored.name)

    def bias(self) -> tuple[ir.Value, ir.Value] | None:
        """(stored bias (out,) used nowhere else, the value that has it added); None without one."""
        if self.node.op_type == "Gemm":
            held = self.node.inputs[2] if len(self.node.inputs) > 2 else None
            plain = self.node.attributes.get_float("beta", 1.0) == 1.0
            return (held, self.node.outputs[0]) if plain and _is_bias(held, self.matrix().shape[1]) else None
        add = only_user(self.node.outputs[0])
        if add is None or add.op_type != "Add" or add.domain:
            return None
        other = add.inputs[1] if add.inputs[0] is self.node.outputs[0] else add.inputs[0]
        return (other, add.outputs[0]) if _is_bias(other, self.matrix().shape[1]) else None


def linear(node: ir.Node | None) -> Linear | None:
    """The node as a `Linear`; None for any other."""
    if node is None or node.domain or node.op_type not in ("MatMul", "Gemm"):
        return None
    stored = node.inputs[1]
    if stored is None or stored.producer() is not None or stored.const_value is None or node.inputs[0] is None:
        return None
    tensor = stored.const_value
    if tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) != 2 or node.inputs[0].const_value is not None:
        return None
    if node.attributes.get_int("transA", 0) != 0 or node.attributes.get_float("alpha", 1.0) != 1.0:
        return None
    return Linear(node, node.op_type == "Gemm" and bool(node.attributes.get_int("transB", 0)))


def linears(model: ir.Model) -> Iterator[Linear]:
    """Those of the main graph, in order."""
    for node in model.graph:
        found = linear(node)
        if found is not None:
            yield found


def only_user(value: ir.Value) -> ir.Node | None:
    """The one node that uses the value, once; None when there are more, or the graph gives it out."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def _is_bias(value: ir.Value | None, size: int) -> TypeGuard[ir.Value]:
    return (
        value is not None
        and value.producer() is None
        and value.const_value is not None
        and value.const_value.dtype == ir.DataType.FLOAT
        and list(value.const_value.shape.numpy()) == [size]
        and _only_here(value)
    )


def _only_here(stored: ir.Value) -> bool:
    return len(stored.uses()) == 1 and not stored.is_graph_output()
