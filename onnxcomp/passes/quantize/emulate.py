"""One float model in which the quantization of each node is switched on and off from outside.

Every target stands in an `If` on one element of a bool input: one branch holds the node as it is, the
other rounds what int8 would round, in float. So one loaded model tells every node's damage, no weight
is stored twice, and nodes in bodies of If and Loop are reached, where ORT's quantizer does not go.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxcomp.passes.quantize.ranges import Ends
from onnxcomp.passes.quantize.targets import Target, stored

#: the input that switches: bool, (targets,)
SWITCH = "onnxcomp.switch"

_LEVELS = 255


@dataclasses.dataclass(frozen=True)
class Rounding:
    """How values are rounded.

    Attributes:
        per_channel: operator types whose weights have one scale per output channel; the others' have one.
        reduce_range: weights in 7 bits.
        ends: range of each activation by its value's name; the others' are measured at each run.
    """

    per_channel: Collection[str]
    reduce_range: bool
    ends: Mapping[str, Ends]


def emulate(model: ir.Model, targets: Sequence[Target], rounding: Rounding) -> ir.Model:
    """A copy of the model with the input `SWITCH`; element i is for `targets[i]`."""
    switched = model.clone()
    nodes = {node.name: node for node in switched.graph.all_nodes()}
    graph = switched.graph
    switch = ir.Value(name=SWITCH, shape=ir.Shape([len(targets)]), type=ir.TensorType(ir.DataType.BOOL))
    graph.inputs.append(switch)
    for number, target in enumerate(targets):
        name = f"{SWITCH}.{number}"
        index = ir.Value(name=f"{name}.index", const_value=ir.tensor(np.array(number, np.int64)))
        graph.register_initializer(index)
        flag = ir.Node("", "Gather", [switch, index], name=name)
        flag.outputs[0].name = name
        graph.insert_before(graph[0], flag)
        _switch(nodes[target.node], target, rounding, flag.outputs[0])
    return switched


def _switch(node: ir.Node, target: Target, rounding: Rounding, flag: ir.Value) -> None:
    """Put the node into an If."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    wanted = [i for i, value in enumerate(node.outputs) if value.name]
    plain, rounded = _Branch(f"{flag.name}.float"), _Branch(f"{flag.name}.int8")
    branches = (
        rounded.graph(_rounded(rounded, node, target, rounding), wanted),
        plain.graph(plain.copy(node, node.inputs), wanted),
    )
    choice = ir.Node(
        "",
        "If",
        [flag],
        [ir.AttrGraph(key, branch) for key, branch in zip(("then_branch", "else_branch"), branches, strict=True)],
        outputs=[ir.Value(name=node.outputs[i].name, type=node.outputs[i].type) for i in wanted],
        name=f"{flag.name}.if",
    )
    graph.insert_before(node, choice)
    for i, new in zip(wanted, choice.outputs, strict=True):
        new.shape = node.outputs[i].shape
        node.outputs[i].replace_all_uses_with(new, replace_graph_outputs=True)
        node.outputs[i].name = f"{flag.name}.gone.{i}"
    graph.remove(node, safe=True)


def _rounded(branch: _Branch, node: ir.Node, target: Target, rounding: Rounding) -> list[ir.Value]:
    inputs = list(node.inputs)
    for i in target.weights:
        axis = channel_axis(node, i) if node.op_type in rounding.per_channel else None
        inputs[i] = branch.weight(_given(inputs[i]), axis, reduce_range=rounding.reduce_range)
    for i in target.constants:
        inputs[i] = branch.constant_activation(_given(inputs[i]))
    for i in target.inputs:
        inputs[i] = branch.activation(_given(inputs[i]), rounding.ends.get(_given(node.inputs[i]).name or ""))
    outputs = branch.copy(node, inputs)
    for i in target.outputs:
        outputs[i] = branch.activation(outputs[i], rounding.ends.get(node.outputs[i].name or ""))
    return outputs


def channel_axis(node: ir.Node, index: int) -> int | None:
    """The axis of the output channels of the weight at this input; None where ORT knows one scale only."""
    if node.op_type == "Gemm" and index == 1:
        return 0 if node.attributes.get_int("transB", 0) else 1
    if ("MatMul" in node.op_type and index == 1) or node.op_type == "Gather":
        tensor = stored(node.inputs[index])
        assert tensor is not None
        return len(tensor.shape) - 1
    return {"Conv": 0, "FusedConv": 0, "ConvTranspose": 1, "LSTM": 1, "GRU": 1, "Attention": 1}.get(node.op_type)


def _given(value: ir.Value | None) -> ir.Value:
    assert value is not None
    return value


class _Branch:
    """The graph of one branch while it is written; names start with `prefix`."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._nodes: list[ir.Node] = []
        self._initializers: list[ir.Value] = []

    def graph(self, outputs: list[ir.Value], wanted: list[int]) -> ir.Graph:
        """The branch with these of the outputs."""
        return ir.Graph(
            (),
            [outputs[i] for i in wanted],
            nodes=self._nodes,
            initializers=self._initializers,
            name=self._prefix,
        )

    def copy(self, node: ir.Node, inputs: Sequence[ir.Value | None]) -> list[ir.Value]:
        """The outputs of the same node with other inputs; an omitted output stays omitted."""
        outputs = [
            ir.Value(name=f"{self._prefix}.out.{i}" if value.name else "", type=value.type)
            for i, value in enumerate(node.outputs)
        ]
        self._nodes.append(
            ir.Node(
                node.domain,
                node.op_type,
                inputs,
                node.attributes.values(),
                overload=node.overload,
                outputs=outputs,
                name=f"{self._prefix}.node",
            )
        )
        return outputs

    def weight(self, value: ir.Value, axis: int | None, *, reduce_range: bool) -> ir.Value:
        """Signed and symmetric, one scale for each index of `axis`, or one for all."""
        tensor = stored(value)
        assert tensor is not None
        array = np.abs(tensor.numpy())
        others = tuple(i for i in range(array.ndim) if i != axis)
        largest = (array.max() if axis is None else array.max(others)) if array.size else np.float32(0)
        scale = np.maximum(np.asarray(largest, np.float32) / (64 if reduce_range else 127), np.float32(1e-38))
        return self._round(value, scale, np.zeros(scale.shape, np.int8), axis)

    def constant_activation(self, value: ir.Value) -> ir.Value:
        """A stored tensor that is rounded as activations are, over its own range."""
        tensor = stored(value)
        assert tensor is not None
        array = tensor.numpy()
        return self.activation(value, (float(array.min(initial=0)), float(array.max(initial=0))))

    def activation(self, value: ir.Value, ends: Ends | None) -> ir.Value:
        """Unsigned over the given range, or over that of each run."""
        if ends is None:
            levels, scale, zero = self._add("DynamicQuantizeLinear", [value], outputs=3)
            return self._add("DequantizeLinear", [levels, scale, zero])[0]
        low, high = min(ends[0], 0.0), max(ends[1], 0.0)
        width = max((high - low) / _LEVELS, 1e-38)
        zero_point = np.array(round(min(-low / width, _LEVELS)), np.uint8)
        return self._round(value, np.array(width, np.float32), zero_point, None)

    def _round(self, value: ir.Value, scale: np.ndarray, zero: np.ndarray, axis: int | None) -> ir.Value:
        parameters = [self._constant(scale), self._constant(zero)]
        attributes = [] if axis is None else [ir.AttrInt64("axis", axis)]
        levels = self._add("QuantizeLinear", [value, *parameters], attributes)[0]
        return self._add("DequantizeLinear", [levels, *parameters], attributes)[0]

    def _add(
        self, op_type: str, inputs: list[ir.Value], attributes: Sequence[ir.Attr] = (), *, outputs: int = 1
    ) -> list[ir.Value]:
        number = len(self._nodes)
        values = [ir.Value(name=f"{self._prefix}.{number}.{i}") for i in range(outputs)]
        self._nodes.append(
            ir.Node("", op_type, inputs, attributes, outputs=values, name=f"{self._prefix}.{op_type}.{number}")
        )
        return values

    def _constant(self, array: np.ndarray) -> ir.Value:
        value = ir.Value(
            name=f"{self._prefix}.constant.{len(self._initializers)}",
            const_value=ir.tensor(array),
            shape=ir.Shape(array.shape),
        )
        value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
        self._initializers.append(value)
        return value
