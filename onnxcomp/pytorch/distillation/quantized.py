"""Quantization-aware training: integer weights train as floats that are rounded in every step.

A model with QuantizeLinear and DequantizeLinear stores integers before the latter. For training each
becomes a float behind a QuantizeLinear with the same scale (Jacob et al. 2018, arXiv 1712.05877), whose
gradient is straight-through; in the end the rounded numbers go back, so that what ONNX Runtime runs is
what was trained. Scales and zero points stay.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxcomp import model as models
from onnxcomp.data import Batches
from onnxcomp.errors import UnsupportedError
from onnxcomp.passes import QuantizeStatic, Simplify
from onnxcomp.pipeline import optimize
from onnxcomp.pytorch.distillation.students import GraphStudent, about

#: operators that read integer weights; only the first kind has a float counterpart to train
_INTEGER = frozenset(
    {
        *("DequantizeLinear", "ConvInteger", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "GatherBlockQuantized"),
        *("MatMulInteger", "MatMulIntegerToFloat", "MatMulNBits", "QGemm", "QLinearConv", "QLinearMatMul"),
    }
)

_FLOAT, _ROUNDED = ".float", ".rounded"


class QuantizedGraph(GraphStudent):
    """A graph in int8 that trains so; a float graph is quantized first, with ranges from `data`.

    Args:
        source: the file, or a model in memory.
        hints: values of the graph to give beside its outputs.
        data: samples for the ranges, where the graph is in float.

    Raises UnsupportedError (integer weights of another kind; see `GraphStudent` too), CalibrationError.
    """

    def __init__(
        self, source: ir.Model | str | os.PathLike[str], hints: Sequence[str] = (), *, data: Batches | None = None
    ) -> None:
        model = source.clone() if isinstance(source, ir.Model) else models.load(source)
        where = about(source)
        if not is_quantized(model) and data is not None:
            steps = [Simplify(), QuantizeStatic()]
            model = optimize(model, steps, data=data, allow_no_effect=[Simplify.name]).model
        self._stored = unfold(model)
        if not self._stored:
            raise UnsupportedError(
                "the student has no integer weights before DequantizeLinear",
                where=where["path"],
                hint="'onnxcomp quantize --mode static' writes such a model; leave out --quantization-aware for others",
            )
        super().__init__(model, hints)
        self._about = where

    def finished(self, folder: Path) -> ir.Model:
        """See `Student`; the graph is the quantized one again."""
        model = super().finished(folder)
        fold(model, self._stored)
        return model

    def to_json(self) -> dict[str, Any]:
        """The file, and that it trained in integers."""
        return {**super().to_json(), "quantized_weights": len(self._stored)}


def is_quantized(model: ir.Model) -> bool:
    """Whether an operator stands in it that reads integer weights."""
    return any(node.op_type in _INTEGER for node in model.graph.all_nodes())


def unfold(model: ir.Model) -> list[str]:
    """Put a float and a QuantizeLinear before every DequantizeLinear of stored integers, in place.

    Names of the integers. What is quantized in blocks, or shared by nodes with different scales, stays as it is.
    """
    done = []
    for value in list(model.graph.initializers.values()):
        nodes = [node for node, at in value.uses() if (node.op_type, at) == ("DequantizeLinear", 0)]
        if not nodes or len(nodes) < len(value.uses()) or value.const_value is None:
            continue
        first = nodes[0]
        alike = all(node.inputs[1:] == first.inputs[1:] and _axis(node) == _axis(first) for node in nodes)
        scale = first.inputs[1]
        if not alike or scale is None or scale.const_value is None or "block_size" in first.attributes:
            continue
        zero = first.inputs[2] if len(first.inputs) > 2 else None
        zero = _zeros(model.graph, value, scale) if zero is None else zero
        if zero.const_value is None:
            continue
        numbers = _spread(value.const_value, scale, zero, _axis(first))
        real = _initializer(model.graph, f"{value.name}{_FLOAT}", numbers, _tensor(scale).dtype)
        rounded = ir.Value(name=f"{value.name}{_ROUNDED}", type=value.type, shape=value.shape)
        attributes = [ir.AttrInt64("axis", _axis(first))]
        node = ir.Node("", "QuantizeLinear", [real, scale, zero], attributes, outputs=[rounded])
        model.graph.insert_before(first, node)
        for reader in nodes:
            reader.replace_input_with(0, rounded)
        del model.graph.initializers[str(value.name)]
        done.append(str(value.name))
    return done


def fold(model: ir.Model, names: Sequence[str]) -> None:
    """The way back of `unfold`, in place, with the floats rounded."""
    for name in names:
        real = model.graph.initializers[name + _FLOAT]
        ((node, _),) = real.uses()
        array, step, offset = (_tensor(value).numpy() for value in node.inputs)
        kind = _tensor(node.inputs[2]).dtype
        places = _places(array.ndim, step, _axis(node))
        whole = np.rint(array / step.reshape(places)) + offset.reshape(places).astype(array.dtype)
        stored = _initializer(model.graph, name, whole.clip(*_limits(kind)).astype(np.int64), kind)
        node.outputs[0].replace_all_uses_with(stored)
        model.graph.remove(node, safe=True)
        del model.graph.initializers[name + _FLOAT]


def _axis(node: ir.Node) -> int:
    found = node.attributes.get("axis")
    return 1 if found is None else int(found.as_int())


def _places(axes: int, factor: np.ndarray, axis: int) -> list[int]:
    if factor.size == 1:
        return [1] * axes
    places = [1] * axes
    places[axis % axes] = -1
    return places


def _tensor(value: ir.Value | None) -> ir.TensorProtocol:
    assert value is not None
    assert value.const_value is not None
    return value.const_value


def _spread(stored: ir.TensorProtocol, scale: ir.Value, zero: ir.Value, axis: int) -> np.ndarray:
    """The real numbers that the integers stand for."""
    step, offset = _tensor(scale).numpy(), _tensor(zero).numpy()
    places = _places(len(stored.shape), step, axis)
    whole = stored.numpy().astype(np.int64) - offset.astype(np.int64).reshape(places)
    real: np.ndarray = (whole * step.reshape(places)).astype(step.dtype)
    return real


def _zeros(graph: ir.Graph, value: ir.Value, scale: ir.Value) -> ir.Value:
    """A zero point for nodes that have none: QuantizeLinear takes the type from it."""
    zeros = np.zeros(_tensor(scale).numpy().shape, np.int64)
    return _initializer(graph, f"{value.name}.zero", zeros, _tensor(value).dtype)


def _initializer(graph: ir.Graph, name: str, array: np.ndarray, dtype: ir.DataType) -> ir.Value:
    """A tensor of this type in the graph."""
    tensor = ir.Tensor(array.astype(dtype.numpy()), dtype=dtype, name=name)
    value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(array.shape), const_value=tensor)
    graph.initializers[name] = value
    return value


def _limits(dtype: ir.DataType) -> tuple[int, int]:
    bits = dtype.bitwidth
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if dtype.is_signed() else (0, (1 << bits) - 1)
