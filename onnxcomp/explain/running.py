"""Reading the graph that ORT runs: integer kernels, what is left in float, and Q/DQ between them."""

from __future__ import annotations

import collections
import functools
import re
from collections.abc import Iterator, Mapping

import onnx_ir as ir

from onnxcomp import model as models
from onnxcomp.explain.explanation import Dequantized, FloatNode, Unfused
from onnxcomp.inspect import MODULE, WEIGHT_INPUTS, all_nodes, is_parameter, stored_origin

#: integer kernels that multiply -> which input is the zero point of their activations, None where it is dynamic
MULTIPLYING: Mapping[str, int | None] = {
    "ConvInteger": 2,
    "DynamicQuantizeLSTM": None,
    "DynamicQuantizeMatMul": None,
    "MatMulInteger": 2,
    "MatMulIntegerToFloat": 4,
    "MatMulNBits": None,
    "QAttention": 6,
    "QGemm": 2,
    "QLinearConv": 2,
    "QLinearMatMul": 2,
}

#: other operators that compute on 8-bit numbers; beside them all of the family QLinear...
_OTHER = {"GatherBlockQuantized", "QEmbedLayerNormalization", "QOrderedMatMul"}

#: what stands between an 8-bit tensor and its kernel without changing a number
_MOVES = {"Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze", "Split", "Slice", "Concat", "MaxPool", "Gather"}

_NORMS = {"SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "EmbedLayerNormalization"}

_QDQ = ("QuantizeLinear", "DequantizeLinear")


class Running:
    """The graph that ORT runs, and who of its nodes does the work of which node of the model."""

    def __init__(self, model: ir.Model, optimized: ir.Model) -> None:
        self.nodes = list(all_nodes(optimized))
        self.kernels = [node for node in self.nodes if node.op_type in MULTIPLYING]
        self._model = model
        self._by_weight: dict[str, list[ir.Node]] = {}
        for node in self.kernels:
            for value in node.inputs:
                if value is not None and value.const_value is not None and len(value.const_value.shape) > 1:
                    name = value.name or ""
                    for known in {name, name.removesuffix("_T")}:  # MatMulNBits holds a transposed copy
                        self._by_weight.setdefault(known, []).append(node)

    def kernel(self, node: ir.Node) -> ir.Node | None:
        """The integer kernel that does the work of a node of the model; None for one in float.

        Weights keep their names through ORT's optimizer; nodes keep theirs up to known endings.
        """
        origins = (stored_origin(value) for value in node.inputs)
        found = [k for o in origins if o is not None for k in self._by_weight.get(o[0].name or "", ())]
        ending = re.compile(re.escape(node.name or "") + r"(_token_\d+|_quant|/.*)?")
        named = [k for k in found or self.kernels if node.name and ending.fullmatch(k.name or "")]
        return next(iter(named or found), None)

    @functools.cached_property
    def integer_kernels(self) -> dict[str, int]:
        """{type: how many} of all that compute on 8-bit numbers, multiplying or not."""
        types = (n.op_type for n in self.nodes)
        mine = (t for t in types if t in MULTIPLYING or t in _OTHER or t.startswith("QLinear"))
        return dict(sorted(collections.Counter(mine).items()))

    @functools.cached_property
    def signed(self) -> tuple[ir.Node, ...]:
        """Kernels whose activations are int8 instead of uint8."""

        def zero_point(node: ir.Node) -> ir.TensorProtocol | None:
            index = MULTIPLYING[node.op_type]
            value = node.inputs[index] if index is not None and index < len(node.inputs) else None
            return None if value is None else value.const_value

        points = ((node, zero_point(node)) for node in self.kernels)
        return tuple(node for node, point in points if point is not None and point.dtype == ir.DataType.INT8)

    @functools.cached_property
    def quantizers(self) -> list[tuple[ir.Node, str]]:
        """(node, kind) of each Q/DQ of activations; see `Unfused.kind`."""
        found = []
        for node in self.nodes:
            if node.op_type not in _QDQ or _is_stored(node):
                continue
            quantize = node.op_type == "QuantizeLinear"
            near = _beyond(node, forward=quantize)
            # a number that is quantized and at once turned back has only been rounded
            trip = near and all(n.op_type == _QDQ[quantize] for n in near)
            found.append((node, "lookup" if _looks_up(node) else "round trip" if trip else "boundary"))
        return found

    @functools.cached_property
    def unfused(self) -> tuple[Unfused, ...]:
        """Records of `quantizers`."""
        return tuple(
            Unfused(name_of(node), node.op_type, kind, _before(node), _after(node)) for node, kind in self.quantizers
        )

    @functools.cached_property
    def between(self) -> dict[str, int]:
        """{operator type: how many} of the float operators beside boundaries, the commonest first."""
        found: dict[int, ir.Node] = {}
        for node, kind in self.quantizers:
            if kind == "boundary":
                near = _beyond(node, forward=node.op_type == "DequantizeLinear")
                found.update((id(n), n) for n in near if n.op_type not in _QDQ)
        return dict(collections.Counter(n.op_type for n in found.values()).most_common())

    @functools.cached_property
    def dequantizers(self) -> list[tuple[ir.Node, ir.Value, ir.TensorProtocol]]:
        """(DequantizeLinear, stored value, its tensor) of weights, which ORT does not fold."""
        found = []
        for node in self.nodes:
            origin = stored_origin(node.inputs[0]) if node.op_type == "DequantizeLinear" else None
            if origin is not None and len(origin[1].shape) > 1:
                found.append((node, *origin))
        return found

    @functools.cached_property
    def dequantized(self) -> tuple[Dequantized, ...]:
        """Records of `dequantizers`."""
        return tuple(Dequantized(v.name or "", t.size, _after(node)) for node, v, t in self.dequantizers)

    @functools.cached_property
    def skip_layer_normalizations(self) -> int:
        """Those that ORT made; the model's own do not count."""
        before, after = (sum(n.op_type in _NORMS for n in nodes) for nodes in (all_nodes(self._model), self.nodes))
        return max(after - before, 0)

    @functools.cached_property
    def float_nodes(self) -> tuple[FloatNode, ...]:
        """Nodes of the model that hold weights and use them in float."""
        tables = {value.name for _, value, _ in self.dequantizers}
        found = []
        for node in all_nodes(self._model):
            stored = list(_weights(node))
            if not stored or node.op_type in MULTIPLYING or self.kernel(node) is not None:
                continue
            whole = all(tensor.dtype.bitwidth > 8 or value.name in tables for value, tensor in stored)
            if "Gather" in node.op_type and not whole:
                continue  # looks rows up in 8 bits
            types = sorted({models.dtype_name(tensor.dtype) for _, tensor in stored})
            found.append(
                FloatNode(
                    node=name_of(node),
                    op=node.op_type,
                    module=node.metadata_props.get(MODULE, ""),
                    stored=", ".join(types),
                    bytes=sum(tensor.nbytes for _, tensor in stored),
                )
            )
        return tuple(found)


def name_of(node: ir.Node) -> str:
    """A node's name, or its operator's where it has none."""
    return node.name or node.op_type


def _weights(node: ir.Node) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    for index in WEIGHT_INPUTS.get((node.domain, node.op_type), ()):
        origin = stored_origin(node.inputs[index]) if index < len(node.inputs) else None
        if origin is not None and len(origin[1].shape) > 1 and is_parameter(origin[1]):
            yield origin


def _is_stored(node: ir.Node) -> bool:
    """Whether a DequantizeLinear turns stored numbers into float."""
    return stored_origin(node.inputs[0]) is not None


def _looks_up(node: ir.Node) -> bool:
    """Whether it turns rows of a stored table into float."""
    producer = node.inputs[0].producer() if node.inputs[0] is not None else None
    return producer is not None and producer.op_type == "Gather" and stored_origin(producer.inputs[0]) is not None


def _beyond(node: ir.Node, *, forward: bool) -> list[ir.Node]:
    """The next nodes that do more than move numbers, behind a node or before it."""
    found: list[ir.Node] = []
    waiting, seen = [node], {id(node)}
    while waiting:
        for near in _neighbours(waiting.pop(), forward=forward):
            if id(near) in seen:
                continue
            seen.add(id(near))
            (waiting if near.op_type in _MOVES else found).append(near)
    return found


def _neighbours(node: ir.Node, *, forward: bool) -> list[ir.Node]:
    if forward:
        return [use.node for value in node.outputs for use in value.uses()]
    values = node.inputs if node.op_type == "Concat" else node.inputs[:1]
    producers = (value.producer() for value in values if value is not None)
    return [producer for producer in producers if producer is not None]


def _before(node: ir.Node) -> tuple[str, ...]:
    value = node.inputs[0]
    if value is None:
        return ()
    producer = value.producer()
    return (name_of(producer) if producer is not None else value.name or "",)


def _after(node: ir.Node) -> tuple[str, ...]:
    value = node.outputs[0]
    users = [name_of(use.node) for use in value.uses()]
    return tuple(dict.fromkeys([*users, *([value.name or ""] if value.is_graph_output() else [])]))


def accuracy_level(node: ir.Node) -> int:
    """Of a MatMulNBits; 4 computes in int8."""
    return node.attributes["accuracy_level"].as_int() if "accuracy_level" in node.attributes else 0
