"""Along which axis of a stored weight a node sums: input channels of Conv, rows of a matrix."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import onnx_ir as ir

from onnxcomp.inspect import WEIGHT_INPUTS, all_nodes, stored_origin
from onnxcomp.passes.fusions.size import integer, permutation

#: operators by how they hold a weight; recurrent ones hold (directions, gates * hidden, inputs)
_CONV = {"Conv", "FusedConv"}
_GEMM = {"Gemm", "FusedGemm", "FusedMatMul"}
_RECURRENT = {"LSTM", "GRU", "RNN"}

_UNCHANGED = {"Cast", "Identity"}


@dataclasses.dataclass(frozen=True)
class Summed:
    """A node that multiplies with a stored weight, or looks it up.

    Attributes:
        node: the node.
        input: which input of it the weight reaches.
        axis: of the stored weight, that the node sums over; None where it sums over none, or none that is known.
    """

    node: ir.Node
    input: int
    axis: int | None

    @property
    def activation(self) -> tuple[ir.Value, int] | None:
        """(what the weight is multiplied with, its axis that is summed over, below 0 from the end).

        None where it is stored too, where channels do not meet all weights (groups), and for a recurrent node,
        whose second matrix meets its own state.
        """
        op, other = self.node.op_type, 1 - self.input if self.input < 2 else 0
        if self.axis is None or op in _RECURRENT or op == "ConvTranspose" or integer(self.node, "group", 1) > 1:
            return None
        axis = -1
        if op in _CONV:
            axis = 1
        elif op == "MatMul" or op in _GEMM:
            turned = integer(self.node, "transB" if other else "transA", 0) == 1
            axis = -1 if bool(other) == turned else -2
        value = self.node.inputs[other]
        return (value, axis) if value is not None and stored_origin(value) is None else None


def uses(model: ir.Model) -> Mapping[ir.Value, list[Summed]]:
    """{stored weight: all nodes that use it as one}, through Transpose, Cast and Identity."""
    found: dict[ir.Value, list[Summed]] = {}
    for node in all_nodes(model):
        for index in WEIGHT_INPUTS.get((node.domain, node.op_type), ()):
            value = node.inputs[index] if index < len(node.inputs) else None
            origin = stored_origin(value)
            if origin is None or value is None:
                continue
            axis = _axis(node, index, len(origin[1].shape))
            found.setdefault(origin[0], []).append(Summed(node, index, _through(value, origin[0], axis)))
    return found


def _axis(node: ir.Node, index: int, rank: int) -> int | None:
    """Of the input, from the front; the rank is that of the stored weight, which `_through` lets nothing change."""
    op = node.op_type
    if node.domain == "com.microsoft.nchwc" or "transBatchA" in node.attributes or "transBatchB" in node.attributes:
        return None
    if op in _CONV:
        return 1
    if op == "ConvTranspose":
        return 0 if integer(node, "group", 1) == 1 else None
    if op in _RECURRENT:
        return rank - 1
    if op == "MatMul" or op in _GEMM:
        last = integer(node, "transB", 0) == 1 if index else integer(node, "transA", 0) == 0
        return rank - 1 if last else rank - 2
    return 0 if op == "Attention" else None


def _through(value: ir.Value, stored: ir.Value, axis: int | None) -> int | None:
    """The axis of what is stored that is this axis of the value."""
    while value is not stored and axis is not None:
        node = value.producer()
        source = None if node is None else node.inputs[0]
        if node is None or source is None or stored.const_value is None:
            return None
        if node.op_type == "Transpose":
            axis = permutation(node, len(stored.const_value.shape))[axis]
        elif node.op_type not in _UNCHANGED:
            return None
        value = source
    return axis
