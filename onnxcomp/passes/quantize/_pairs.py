"""Pairs of layers with only operators between them that a positive factor passes through unchanged."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable

import numpy as np
import onnx_ir as ir

#: f(s x) = s f(x) for s > 0, element by element
_HOMOGENEOUS = {"Identity", "LeakyRelu", "PRelu", "Relu"}

#: the same, each channel of an image for itself
_POOLS = {"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"}

_LAYERS = {"Conv", "Gemm", "MatMul"}


@dataclasses.dataclass(frozen=True)
class Layer:
    """How the weight of a Conv, Gemm or MatMul is laid out.

    Attributes:
        weight: its initializer, float32; (inputs, outputs) where it is turned, else (outputs, inputs per group, ...).
        tensor: what the weight holds before anything is scaled.
        groups: of a Conv; 1 else.
        turned: see `weight`.
    """

    node: ir.Node
    weight: ir.Value
    tensor: ir.TensorProtocol
    groups: int
    turned: bool

    @property
    def outputs(self) -> int:
        """Channels that come out."""
        return int(self.tensor.shape.numpy()[1 if self.turned else 0])

    @property
    def inputs(self) -> int:
        """Channels that go in."""
        return self.groups * int(self.tensor.shape.numpy()[0 if self.turned else 1])

    @property
    def pixels(self) -> int:
        """Axes behind the one of channels, in what goes in and comes out: 0 where channels come last."""
        return len(self.tensor.shape) - 2 if self.node.op_type == "Conv" else 0

    def magnitudes(self) -> np.ndarray:
        """Largest |weight| of each kernel, float32: (groups, outputs per group, inputs per group)."""
        array = np.abs(self.tensor.numpy())
        flat = array.T if self.turned else array.reshape(*array.shape[:2], -1).max(axis=2)
        grouped: np.ndarray = flat.reshape(self.groups, -1, flat.shape[1])
        return grouped

    def scaled(self, array: np.ndarray, out: np.ndarray, into: np.ndarray) -> np.ndarray:
        """The weight with outputs times `out`, (outputs,), and inputs times `into`, (inputs,); float64."""
        factors = out.reshape(self.groups, -1, 1) * into.reshape(self.groups, 1, -1)
        factors = factors.reshape(self.outputs, -1)
        wide = factors.T if self.turned else factors.reshape(*factors.shape, *[1] * (array.ndim - 2))
        product: np.ndarray = array.astype(np.float64) * wide
        return product


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two layers and what is scaled between them.

    Attributes:
        biases: initializers of as many elements as the first layer has outputs.
        repeat: inputs of the second layer that are one output of the first: pixels, behind a Flatten.
    """

    first: Layer
    second: Layer
    biases: tuple[ir.Value, ...]
    repeat: int


def find(nodes: Iterable[ir.Node], kept: Collection[str]) -> tuple[list[Pair], list[tuple[str, str]]]:
    """(pairs in the order of the graph, [(node, why a pair ended there)]); `kept` are nodes to leave alone."""
    pairs, blocked = [], []
    for node in nodes:
        first = layer(node, kept)
        if first is not None:
            found = _behind(first, kept)
            if isinstance(found, Pair):
                pairs.append(found)
            elif found is not None:
                blocked.append((found.name or found.op_type, f"{found.op_type} does not scale: no pair across it"))
    return pairs, blocked


def layer(node: ir.Node, kept: Collection[str] = ()) -> Layer | None:
    """The node as a layer with a weight of its own; None for all others."""
    if node.op_type not in _LAYERS or node.domain or node.name in kept or len(node.inputs) < 2:
        return None
    weight = node.inputs[1]
    tensor = _own(weight)
    if weight is None or tensor is None or not tensor.size or node.attributes.get_int("transA"):
        return None
    if node.op_type == "Conv":
        return Layer(node, weight, tensor, node.attributes.get_int("group", 1) or 1, turned=False)
    if len(tensor.shape) != 2:
        return None
    return Layer(node, weight, tensor, 1, turned=not node.attributes.get_int("transB"))


def _behind(first: Layer, kept: Collection[str]) -> Pair | ir.Node | None:
    """The pair that a layer begins; or the Clip that stands in the way."""
    channels, pixels, flattened = first.outputs, first.pixels, False
    biases = [value for value in first.node.inputs[2:] if value is not None]
    if not all(_per_channel(value, channels, 0) for value in biases):
        return None
    value = first.node.outputs[0]
    while True:
        uses = list(value.uses())
        if len(uses) != 1 or value.is_graph_output() or uses[0].node.graph is not first.node.graph:
            return None
        node, index = uses[0]
        if node.domain or sum(bool(v.uses()) or v.is_graph_output() for v in node.outputs) != 1:
            return None
        if node.op_type in _LAYERS:
            second = layer(node, kept) if index == 0 else None
            if second is None or second.pixels != pixels or second.inputs % channels:
                return None
            repeat = second.inputs // channels
            return Pair(first, second, tuple(biases), repeat) if repeat == 1 or flattened else None
        if node.op_type == "Clip":
            return node
        if node.op_type == "Add":
            other = node.inputs[1 - index]
            if other is None or not _per_channel(other, channels, pixels):
                return None
            biases.append(other)
        elif node.op_type == "Flatten" and pixels and node.attributes.get_int("axis", 1) == 1:
            flattened, pixels = True, 0
        elif not (index == 0 and (node.op_type in _HOMOGENEOUS or (node.op_type in _POOLS and pixels))):
            return None
        value = node.outputs[0]


def _per_channel(value: ir.Value, channels: int, pixels: int) -> bool:
    """Whether a stored summand of its own has one number for each channel, with `pixels` axes behind that one."""
    tensor = _own(value)
    if tensor is None or tensor.size != channels:
        return False
    shape = tensor.shape.numpy()
    return pixels < len(shape) <= pixels + 2 and shape[-1 - pixels] == channels


def _own(value: ir.Value | None) -> ir.TensorProtocol | None:
    """What an initializer holds, where it is float32 and one node's alone."""
    if value is None or not value.is_initializer() or len(value.uses()) != 1:
        return None
    if value.is_graph_input() or value.is_graph_output():
        return None
    tensor = value.const_value
    return tensor if tensor is not None and tensor.dtype == ir.DataType.FLOAT else None
