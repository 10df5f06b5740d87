"""Layers: MatMul, Gemm and Conv with a stored weight, as matrices (in, out) with a bias."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar, TypeAlias

import numpy as np
import onnx_ir as ir

from onnxcomp.passes.quantize.linear import Linear, Weighted, linear
from onnxcomp.passes.quantize.names import initializer
from onnxcomp.passes.quantize.stored import is_alone, is_weight, tensor_of


@dataclasses.dataclass(frozen=True)
class Convolution(Weighted):
    """A Conv with a stored kernel."""

    #: of the channels in the input
    axis: ClassVar[int] = 1

    def matrix(self) -> np.ndarray:
        """float32, (channels of a group x positions of the kernel, out)."""
        array: np.ndarray = tensor_of(self.stored).numpy()
        return array.reshape(len(array), -1).T

    def mean_output(self, mean: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        """What a matrix like this makes of an input that is `mean`, (channels,), everywhere: (out,)."""
        groups = int(self.node.attributes.get_int("group", 1) or 1)
        positions = groups * len(matrix) // len(mean)
        inputs = np.repeat(mean, positions).reshape(groups, -1)
        outputs: np.ndarray = np.einsum("gi,igo->go", inputs, matrix.reshape(len(matrix), groups, -1))
        return outputs.reshape(-1)

    def bias(self) -> ir.Value | None:
        """The stored bias, (out,), that is used nowhere else; None without one."""
        return self.third if is_weight(self.third) and is_alone(self.third) else None


Layer: TypeAlias = Linear | Convolution


def layers(model: ir.Model) -> Iterator[Layer]:
    """Those of the main graph, in order."""
    for node in model.graph:
        found = linear(node)
        if found is not None:
            yield found
        elif node.op_type == "Conv" and not node.domain and is_weight(node.inputs[1]) and _varies(node.inputs[0]):
            yield Convolution(node)


def add_to_bias(model: ir.Model, layer: Layer, change: np.ndarray) -> bool:
    """Add (out,) to the bias; False where there is none. A Conv gets one: it costs nothing."""
    bias = layer.bias()
    if bias is None:
        if layer.node.op_type != "Conv" or layer.third is not None:
            return False
        zeros = ir.Tensor(np.zeros(len(change), np.float32))
        bias = initializer(model, f"{layer.stored.name}_bias", zeros)
        layer.node.resize_inputs(3)
        layer.node.replace_input_with(2, bias)
    changed = (tensor_of(bias).numpy() + change).astype(np.float32)
    bias.const_value = ir.Tensor(changed, name=bias.name)
    return True


def _varies(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is None
