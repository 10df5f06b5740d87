"""Stored numbers that can take in a factor for each channel of a value that they make."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from onnxcomp.passes.quantize.heads import Channels, behind_split, fused_values, keeps_channels, split_values
from onnxcomp.passes.quantize.linear import Linear, linear
from onnxcomp.passes.quantize.stored import is_alone, is_own_vector, multiply, tensor_of

_NORMS = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")

#: f(s x) = s f(x) for s > 0, element by element
_HOMOGENEOUS = ("Identity", "LeakyRelu", "Relu")


@dataclasses.dataclass(frozen=True)
class _Taker:
    """What is to be divided: a vector, or the columns of a matrix.

    Attributes:
        op_type: of the node that holds it.
        held: the vector, or the node with the matrix.
        channels: which of its columns.
    """

    op_type: str
    held: ir.Value | Linear
    channels: Channels

    def divide(self, factors: np.ndarray) -> None:
        """Divide these channels by (count,)."""
        inverse = np.ones(self.channels.of)
        inverse[self.channels.start : self.channels.start + self.channels.count] = 1 / factors
        if isinstance(self.held, Linear):
            self.held.multiply(inverse, axis=1)
        else:
            multiply(self.held, inverse)


def divide(value: ir.Value, factors: np.ndarray) -> str | None:
    """Change stored numbers so that the value, channels last, comes divided by `factors`.

    The way back to them leads through what treats channels alike, whatever they are multiplied by: the mixing of
    tokens in attention, Relu, sums of which all parts take the factors in, products of which one does.

    Args:
        value: float32, (..., channels); used by nothing that does not want it divided.
        factors: positive, (channels,).

    Returns the operator type that took them in; None, with nothing changed, where none can.
    """
    found = _takers(value, Channels(0, len(factors), len(factors)))
    for taker in found or ():
        taker.divide(factors)
    return found[0].op_type if found else None


def _takers(value: ir.Value, channels: Channels) -> list[_Taker] | None:
    """All that must be divided together; None where there is something that cannot be."""
    apart = behind_split(value, channels)
    if apart is not None:
        return _takers(*apart)
    node = value.producer()
    if node is None or value is not node.outputs[0]:
        return None
    made = linear(node)
    if made is not None:
        return _of_linear(made, channels)
    mixed = fused_values(node)
    if mixed is not None:
        return _of_attention(node, mixed, channels)
    return None if node.domain else _of_operator(node, channels)


def _of_operator(node: ir.Node, channels: Channels) -> list[_Taker] | None:
    first = node.inputs[0] if node.inputs else None
    if node.op_type in _NORMS:
        return _all(_of_part(node, v, channels) for v in node.inputs[1:] if v is not None)
    if node.op_type in ("Add", "Sub"):  # what computes first, for the name
        parts = sorted(node.inputs, key=lambda v: v is not None and v.producer() is None)
        return _all(_of_part(node, v, channels) for v in parts)
    if node.op_type == "Mul":
        return next(filter(None, (_of_part(node, v, channels) for v in node.inputs)), None)
    if node.op_type in _HOMOGENEOUS:
        return _of_part(node, first, channels)
    if node.op_type != "Reshape":
        return None
    split = split_values(node, channels)
    if split is not None:
        return _takers(*split)
    without_rank = dataclasses.replace(channels, rank=None)
    return _of_part(node, first, without_rank) if keeps_channels(node, channels) else None


def _of_linear(made: Linear, channels: Channels) -> list[_Taker] | None:
    if made.shared or made.shape[1] != channels.of:
        return None
    bias = [] if made.third is None else [_of_vector(made.node, made.third, channels)]
    return _all([[_Taker(made.node.op_type, made, channels)], *bias])


def _of_attention(node: ir.Node, values: ir.Value, channels: Channels) -> list[_Taker] | None:
    found = _of_part(node, values, dataclasses.replace(channels, rank=3))
    bias = node.inputs[3] if node.domain and len(node.inputs) > 3 else None
    if bias is None or bias.const_value is None:
        return found if bias is None else None
    size = tensor_of(bias).size  # of queries and keys first
    held = Channels(size - channels.of + channels.start, channels.count, size)
    return _all([found, _of_vector(node, bias, held)])


def _of_part(node: ir.Node, value: ir.Value | None, channels: Channels) -> list[_Taker] | None:
    """Of an input of a node: a vector that is stored, or what is computed for the node alone."""
    if value is None or not is_alone(value):
        return None
    return _of_vector(node, value, channels) if value.producer() is None else _takers(value, channels)


def _of_vector(node: ir.Node, value: ir.Value, channels: Channels) -> list[_Taker] | None:
    return [_Taker(node.op_type, value, channels)] if is_own_vector(value, channels.of) else None


def _all(parts: Iterable[list[_Taker] | None]) -> list[_Taker] | None:
    found: list[_Taker] = []
    for part in parts:
        if part is None:
            return None
        found += part
    return found or None
