"""Consumers: nodes that sum over what was cut with stored weights, and the biases behind them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from onnxcomp.passes.fusions.size import integer
from onnxcomp.passes.prune.atoms import Use
from onnxcomp.passes.prune.cut import Kept

_READ_THROUGH = ("Identity", "Transpose")


@dataclasses.dataclass(frozen=True, eq=False)
class Consumer:
    """A Conv, Gemm or MatMul whose weights can make good what it no longer reads.

    Attributes:
        use: in the analysed model; when that is cut, its values are what is left.
        place: of the node in the main graph before the cut.
        matrix: the weight before the cut, as the node reads it.
        kept: places of `matrix` that stay along the axis of the sum: int64, ascending.
        outputs: likewise along that of the outputs.
    """

    use: Use
    place: int
    matrix: np.ndarray
    kept: np.ndarray
    outputs: np.ndarray

    @property
    def name(self) -> str:
        """Of the node."""
        return self.use.node.name or self.use.node.outputs[0].name or self.use.node.op_type

    @property
    def weight(self) -> np.ndarray:
        """Float64, (groups, outputs of a group that stay, inputs of a group).

        An input of a Conv is a channel at one place of the kernel.
        """
        array = self.matrix.astype(np.float64)
        rows = array if self.use.node.op_type == "Conv" or self.use.weight_axis == 1 else array.T
        found: np.ndarray = rows[self.outputs].reshape(self.use.groups, len(self.outputs) // self.use.groups, -1)
        return found

    @property
    def width(self) -> int:
        """Inputs of a group."""
        return int(self.matrix.shape[self.use.weight_axis]) * self._positions

    @property
    def inputs(self) -> np.ndarray:
        """Which of the inputs of a group stay: int64, ascending."""
        found: np.ndarray = (self.kept[:, np.newaxis] * self._positions + np.arange(self._positions)).reshape(-1)
        return found

    @property
    def _positions(self) -> int:
        return math.prod(self.matrix.shape[2:])

    def bias(self, node: ir.Node) -> ir.Value | None:
        """The stored bias, one number for each output, of the node in a copy of the cut model; None if shared."""
        value = node.inputs[2] if len(node.inputs) > 2 else None
        if node.op_type == "MatMul":
            behind = list(node.outputs[0].uses())
            alone = len(behind) == 1 and behind[0].node.op_type == "Add" and not node.outputs[0].is_graph_output()
            value = behind[0].node.inputs[1 - behind[0].idx] if alone else None
        if value is None or value.const_value is None or len(value.uses()) != 1 or value.is_graph_output():
            return None
        dims = value.const_value.shape.numpy()
        fits = bool(dims) and math.prod(dims) == dims[-1] == len(self.outputs)
        return value if fits and _bias_factor(node) else None

    def has_bias(self, node: ir.Node) -> bool:
        """Whether it has a bias, or can get one at no cost: a Conv without."""
        given = node.inputs[2] if len(node.inputs) > 2 else None
        return self.bias(node) is not None or (node.op_type == "Conv" and given is None)

    def write(self, node: ir.Node, weight: np.ndarray, shift: np.ndarray | None) -> None:
        """Store what was found, in a copy of the cut model.

        Args:
            node: there.
            weight: (groups, outputs of a group, inputs that stay).
            shift: what to add to the outputs, (outputs,); None for nothing.
        """
        value, turns = _stored(node.inputs[list(self.use.node.inputs).index(self.use.weight)])
        tensor = value.const_value
        assert tensor is not None
        shape = np.array(tensor.shape.numpy())
        for turn in reversed(turns):
            shape = shape[list(turn)]
        rows = weight.reshape(len(self.outputs), -1)
        array = rows.reshape(shape) if node.op_type == "Conv" or self.use.weight_axis == 1 else rows.T
        for turn in turns:
            array = array.transpose(np.argsort(turn))
        made = np.ascontiguousarray(array.astype(tensor.dtype.numpy()))
        value.const_value = ir.Tensor(made, name=tensor.name, dtype=tensor.dtype)
        if shift is not None:
            self._shift(node, shift, tensor.dtype)

    def _shift(self, node: ir.Node, shift: np.ndarray, dtype: ir.DataType) -> None:
        bias = self.bias(node)
        if bias is None:
            bias = _new_bias(node, len(shift), dtype)
        tensor = bias.const_value
        assert tensor is not None
        old = tensor.numpy()
        new = old.astype(np.float64) + (shift / _bias_factor(node)).reshape(old.shape)
        bias.const_value = ir.Tensor(new.astype(old.dtype), name=bias.name, dtype=tensor.dtype)


def find(kept: Kept) -> tuple[list[list[Consumer]], list[tuple[str, str]]]:
    """(consumers of what is cut, those with one weight together; [(node, why it is none)]). Before the cut."""
    sets: dict[str, list[Consumer]] = {}
    left: list[tuple[str, str]] = []
    places = {node: place for place, node in enumerate(kept.analysis.model.graph)}
    for use in kept.analysis.atoms.uses:
        indices = kept.indices(use.weight, use.weight_axis)
        if indices is None:
            continue
        matrix = use.matrix()
        reason = refusal(use, matrix)
        if reason is not None or matrix is None:
            left.append((use.node.name or use.node.op_type, reason or ""))
            continue
        axis = 0 if use.node.op_type == "Conv" else 1 - use.weight_axis
        outputs = kept.indices(use.weight, axis)
        outputs = np.arange(matrix.shape[axis]) if outputs is None else outputs
        consumer = Consumer(use, places[use.node], matrix, indices, outputs)
        sets.setdefault(use.initializer, []).append(consumer)
    for name, members in list(sets.items()):
        ways = {(member.use.weight_axis, str(_stored(member.use.weight)[1])) for member in members}
        readers = set(_readers(kept.analysis.model.graph.initializers[name]))
        if len(ways) > 1 or readers != {member.use.node for member in members}:
            left += [(member.name, "its weight is read in another way too") for member in sets.pop(name)]
    return list(sets.values()), left


def refusal(use: Use, matrix: np.ndarray | None) -> str | None:
    """Why a node is no consumer that can be repaired."""
    node, activation = use.node, use.activation
    if node.op_type not in ("Conv", "Gemm", "MatMul"):
        return f"no rule for {node.op_type}"
    if activation is not node.inputs[0] or (node.op_type == "Gemm" and integer(node, "transA", 0)):
        return "its weight multiplies columns"
    if activation.producer() is None and not activation.is_graph_input():
        return "it multiplies two stored tensors"
    if matrix is None:
        return "its weight is computed"
    if node.op_type != "Conv" and matrix.ndim != 2:
        return "its weight has more than two axes"
    return None


def _stored(value: ir.Value | None) -> tuple[ir.Value, list[list[int]]]:
    """(the initializer that a weight is, the orders of axes that it goes through, the last one first)."""
    turns = []
    assert value is not None
    while (node := value.producer()) is not None:
        source = node.inputs[0]
        assert source is not None
        if node.op_type == "Transpose":
            turns.append(list(node.attributes.get_ints("perm", ()) or (1, 0)))
        value = source
    return value, turns


def _readers(value: ir.Value) -> Iterator[ir.Node | None]:
    """The nodes that read a stored tensor, up to order; None where an output of the model is one."""
    if value.is_graph_output():
        yield None
    for node, _ in value.uses():
        if node.op_type in _READ_THROUGH and not node.domain:
            yield from _readers(node.outputs[0])
        else:
            yield node


def _bias_factor(node: ir.Node) -> float:
    """What the bias is multiplied by; of a Gemm by beta, where its sum is multiplied by alpha."""
    if node.op_type != "Gemm":
        return 1.0
    return node.attributes.get_float("beta", 1.0) / (node.attributes.get_float("alpha", 1.0) or 1.0)


def _new_bias(node: ir.Node, count: int, dtype: ir.DataType) -> ir.Value:
    graph, weight = node.graph, node.inputs[1]
    assert isinstance(graph, ir.Graph)
    assert weight is not None
    taken = {value.name for each in graph.all_nodes() for value in each.outputs} | set(graph.initializers)
    taken |= {value.name for value in graph.inputs}
    name = f"{weight.name}_bias"
    while name in taken:
        name += "_"
    tensor = ir.Tensor(np.zeros(count, dtype.numpy()), name=name, dtype=dtype)
    made = ir.Value(name=name, const_value=tensor, shape=ir.Shape([count]), type=ir.TensorType(dtype))
    graph.register_initializer(made)
    node.resize_inputs(max(len(node.inputs), 3))
    node.replace_input_with(2, made)
    return made
