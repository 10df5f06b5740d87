"""Write two thin weights in the place of one, and the mean that they lose into the bias."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxcomp.passes.quantize.names import free, initializer
from onnxcomp.passes.share.matrices import Family, Member


def write(model: ir.Model, family: Family, left: np.ndarray, right: np.ndarray) -> None:
    """Let the nodes of a family multiply with A, (inputs, rank), and then with their columns of B, (rank, outputs).

    The second node is the one that was there: names of values, attributes of the sum and the bias stay.
    """
    first = family.members[0]
    stored = _store(model, f"{first.value.name}_left", first, _as_stored(left.T, first, kernel=True))
    start = 0
    reduced: dict[ir.Value, ir.Value] = {}
    for member in family.members:
        columns = right[:, start : start + member.shape[1]]
        start += member.shape[1]
        own = _store(model, f"{member.value.name}_right", member, _as_stored(columns.T, member, kernel=False))
        for node in member.nodes:
            source = node.inputs[0]
            assert source is not None
            if source not in reduced or member.convolves:
                reduced[source] = _reduce(model, node, stored, member)
            _expand(node, reduced[source], own)


def bias(node: ir.Node, count: int) -> ir.Value | None:
    """The stored bias of a node, one number for each of its outputs, which nothing else reads."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if node.op_type == "MatMul":
        behind = list(node.outputs[0].uses())
        alone = len(behind) == 1 and behind[0].node.op_type == "Add" and not node.outputs[0].is_graph_output()
        value = behind[0].node.inputs[1 - behind[0].idx] if alone else None
    if value is None or value.const_value is None or len(value.uses()) != 1 or value.is_graph_output():
        return None
    dims = value.const_value.shape.numpy()
    fits = bool(dims) and math.prod(dims) == dims[-1] == count and value.producer() is None
    return value if fits and _factor(node) else None


def has_bias(node: ir.Node, count: int) -> bool:
    """Whether a node has a bias of its own, or can get one at no cost: a Conv or Gemm without."""
    given = node.inputs[2] if len(node.inputs) > 2 else None
    return bias(node, count) is not None or (node.op_type != "MatMul" and given is None)


def shift(model: ir.Model, node: ir.Node, added: np.ndarray) -> None:
    """Add to the outputs of a node that `has_bias`, before alpha: float64, (outputs,)."""
    value = bias(node, len(added))
    weight = node.inputs[1]
    assert weight is not None
    if value is None:
        if node.op_type == "Gemm":
            node.attributes["beta"] = ir.AttrFloat32("beta", 1.0)
        assert weight.const_value is not None
        zeros = np.zeros(len(added), weight.const_value.dtype.numpy())
        value = initializer(model, f"{weight.name}_bias", ir.Tensor(zeros))
        node.resize_inputs(3)
        node.replace_input_with(2, value)
    tensor = value.const_value
    assert tensor is not None
    old = tensor.numpy()
    new = old.astype(np.float64) + (added / _factor(node)).reshape(old.shape)
    value.const_value = ir.Tensor(new.astype(old.dtype), name=value.name, dtype=tensor.dtype)


def _factor(node: ir.Node) -> float:
    """What the bias of a Gemm is multiplied by, where its sum is multiplied by alpha."""
    if node.op_type != "Gemm":
        return 1.0
    return node.attributes.get_float("beta", 1.0) / (node.attributes.get_float("alpha", 1.0) or 1.0)


def _as_stored(rows: np.ndarray, member: Member, *, kernel: bool) -> np.ndarray:
    """(outputs, inputs) as a node reads it: the kernel of the weight, or one of a single place."""
    if not member.convolves:
        return rows.T
    sizes: Sequence[int] = [int(size) for size in member.tensor.shape.numpy()[1:]]
    return rows.reshape(len(rows), *(sizes if kernel else [rows.shape[1]] + [1] * (len(sizes) - 1)))


def _store(model: ir.Model, name: str, member: Member, array: np.ndarray) -> ir.Value:
    made = np.ascontiguousarray(array.astype(member.tensor.dtype.numpy()))
    value = initializer(model, name, ir.Tensor(made, dtype=member.tensor.dtype))
    assert value.const_value is not None
    value.const_value.name = value.name
    return value


def _reduce(model: ir.Model, node: ir.Node, stored: ir.Value, member: Member) -> ir.Value:
    """A new node before `node` that multiplies its input with A."""
    kept = dict(node.attributes) if member.convolves else {}
    name = free(model, f"{node.name or node.outputs[0].name}_reduced")
    made = ir.Node(
        "",
        "Conv" if member.convolves else "MatMul",
        [node.inputs[0], stored],
        kept.values(),
        name=name,
        metadata_props=dict(node.metadata_props),
    )
    made.outputs[0].name = name
    model.graph.insert_before(node, made)
    return made.outputs[0]


def _expand(node: ir.Node, reduced: ir.Value, own: ir.Value) -> None:
    """Let a node multiply what is reduced with B."""
    if node.op_type == "Conv":
        assert own.shape is not None
        node.attributes.clear()
        node.attributes["kernel_shape"] = ir.AttrInt64s("kernel_shape", [1] * (len(own.shape) - 2))
    else:
        node.attributes.pop("transB", None)
    node.replace_input_with(0, reduced)
    node.replace_input_with(1, own)
