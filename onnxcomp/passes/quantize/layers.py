"""Layers: MatMul, Gemm and Conv with a stored weight, as matrices (in, out) with a bias."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from onnxcomp.passes.quantize.linear import Linear, linear
from onnxcomp.passes.quantize.names import initializer


@dataclasses.dataclass(frozen=True)
class Layer:
    """A node that multiplies with a stored weight.

    Attributes:
        node: MatMul, Gemm or Conv.
        linear: how a MatMul or Gemm holds its matrix; None for Conv.
        axis: of the channels in the input.
    """

    node: ir.Node
    linear: Linear | None
    axis: int

    @property
    def input(self) -> ir.Value:
        """What is multiplied."""
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def shared(self) -> bool:
        """Whether other nodes use the weight too."""
        return len(self._stored.uses()) > 1 or self._stored.is_graph_output()

    def matrix(self) -> np.ndarray:
        """float32, (in, out); for Conv (channels of a group x positions of the kernel, out)."""
        if self.linear:
            return self.linear.matrix()
        array: np.ndarray = self._tensor.numpy()
        return array.reshape(len(array), -1).T

    def mean_output(self, mean: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        """What a matrix like this layer's makes of an input that is `mean`, (channels,), everywhere: (out,)."""
        if self.linear:
            product: np.ndarray = mean @ matrix
            return product
        groups = self._groups
        positions = groups * len(matrix) // len(mean)
        inputs = np.repeat(mean, positions).reshape(groups, -1)
        outputs: np.ndarray = np.einsum("gi,igo->go", inputs, matrix.reshape(len(matrix), groups, -1))
        return outputs.reshape(-1)

    def add_to_bias(self, model: ir.Model, change: np.ndarray) -> bool:
        """Add (out,) to the bias; False where there is none. A Conv gets one: it costs nothing."""
        bias = self._bias()
        if bias is None:
            if self.linear or (len(self.node.inputs) > 2 and self.node.inputs[2] is not None):
                return False
            bias = self._new_bias(model, len(change))
        held = bias.const_value
        assert held is not None
        bias.const_value = ir.Tensor((held.numpy() + change).astype(np.float32), name=bias.name)
        return True

    def _bias(self) -> ir.Value | None:
        if self.linear:
            found = self.linear.bias()
            return None if found is None else found[0]
        value = self.node.inputs[2] if len(self.node.inputs) > 2 else None
        alone = value is not None and value.producer() is None and value.const_value is not None
        return value if alone and value is not None and len(value.uses()) == 1 else None

    def _new_bias(self, model: ir.Model, size: int) -> ir.Value:
        value = initializer(model, f"{self._stored.name}_bias", ir.Tensor(np.zeros(size, np.float32)))
        self.node.resize_inputs(3)
        self.node.replace_input_with(2, value)
        return value

    @property
    def _stored(self) -> ir.Value:
        value = self.node.inputs[1]
        assert value is not None
        return value

    @property
    def _tensor(self) -> ir.TensorProtocol:
        tensor = self._stored.const_value
        assert tensor is not None
        return tensor

    @property
    def _groups(self) -> int:
        return int(self.node.attributes.get_int("group", 1) or 1)


def layers(model: ir.Model) -> Iterator[Layer]:
    """Those of the main graph, in order."""
    for node in model.graph:
        found = linear(node)
        if found is not None:
            yield Layer(node, found, -1)
        elif node.op_type == "Conv" and not node.domain and _is_stored(node.inputs[1]) and _varies(node.inputs[0]):
            yield Layer(node, None, 1)


def _varies(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is None


def _is_stored(value: ir.Value | None) -> bool:
    return (
        value is not None
        and value.producer() is None
        and value.const_value is not None
        and value.const_value.dtype == ir.DataType.FLOAT
        and value.const_value.size > 0
    )
