"""Linear nodes: MatMul and Gemm with a stored matrix, read and written alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxcomp.passes.quantize.stored import is_alone, is_own_vector, is_weight, multiply, tensor_of

_COLUMNS = 256


@dataclasses.dataclass(frozen=True)
class Weighted:
    """A node that multiplies its first input with a stored weight, its second."""

    node: ir.Node

    @property
    def input(self) -> ir.Value:
        """What is multiplied."""
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
        """Whether other nodes use the weight too, or the graph gives it out."""
        return not is_alone(self.stored)

    @property
    def third(self) -> ir.Value | None:
        """The third input, where the node has one."""
        return self.node.inputs[2] if len(self.node.inputs) > 2 else None


@dataclasses.dataclass(frozen=True)
class Linear(Weighted):
    """A MatMul or Gemm that multiplies rows, float32, (..., in), with a stored matrix.

    Attributes:
        transposed: whether the matrix is stored as (out, in).
    """

    #: of the channels in the input
    axis: ClassVar[int] = -1

    transposed: bool

    @property
    def shape(self) -> tuple[int, int]:
        """(in, out)."""
        first, second = (int(size) for size in tensor_of(self.stored).shape.numpy())
        return (second, first) if self.transposed else (first, second)

    def matrix(self) -> np.ndarray:
        """float32, (in, out)."""
        array: np.ndarray = tensor_of(self.stored).numpy()
        return array.T if self.transposed else array

    def multiply(self, factors: np.ndarray, axis: int) -> None:
        """Multiply the matrix by (in,) for axis 0, by (out,) for axis 1."""
        multiply(self.stored, factors, 1 - axis if self.transposed else axis)

    def mean_output(self, mean: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        """What a matrix like this makes of an input that is `mean`, (in,), everywhere: (out,)."""
        # some columns at a time, for they become float64
        return np.concatenate([mean @ matrix[:, i : i + _COLUMNS] for i in range(0, matrix.shape[1], _COLUMNS)])

    def bias(self) -> ir.Value | None:
        """The stored bias, (out,), that is added and used nowhere else; None without one."""
        if self.node.op_type == "Gemm":
            plain = self.node.attributes.get_float("beta", 1.0) == 1.0
            return self.third if plain and is_own_vector(self.third, self.shape[1]) else None
        add = only_user(self.node.outputs[0])
        if add is None or add.op_type != "Add" or add.domain:
            return None
        other = add.inputs[1] if add.inputs[0] is self.node.outputs[0] else add.inputs[0]
        return other if is_own_vector(other, self.shape[1]) else None


def linear(node: ir.Node | None) -> Linear | None:
    """The node as a `Linear`; None for any other."""
    if node is None or node.domain or node.op_type not in ("MatMul", "Gemm"):
        return None
    rows, held = node.inputs[:2]
    if not is_weight(held) or len(tensor_of(held).shape) != 2 or rows is None or rows.const_value is not None:
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
    return next(iter(value.uses())).node if is_alone(value) else None
