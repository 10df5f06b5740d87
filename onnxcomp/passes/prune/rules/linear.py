"""Rules of operators that multiply by stored weights, and of normalizations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import onnx_ir as ir

from onnxcomp.inspect import stored_origin
from onnxcomp.passes.fusions.size import integer
from onnxcomp.passes.prune.atoms import Atoms, Axis, RefusedError, Use

_SPATIAL = "a convolution or pooling runs along it"
_NORMALIZED = "it is normalized over: removing a part changes what stays"


def input_at(node: ir.Node, index: int) -> ir.Value | None:
    """An input, None where it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def required(node: ir.Node, index: int) -> ir.Value:
    """An input. Raises RefusedError where it is left out."""
    value = input_at(node, index)
    if value is None:
        raise RefusedError(f"{node.op_type} without its input {index}")
    return value


def used(outputs: Iterable[ir.Value]) -> bool:
    """Whether anything reads one of the outputs."""
    return any(output.uses() or output.is_graph_output() for output in outputs)


def rows(at: Atoms, value: ir.Value | None, axis: Axis) -> None:
    """A parameter of one axis, one element for each channel."""
    if value is not None:
        if at.rank(value) != 1 or at.axis(value, 0).count not in (axis.count, 0):
            raise RefusedError("a parameter does not have one element for each channel")
        at.unite(at.axis(value, 0), axis)


def _spatial(at: Atoms, *values: ir.Value) -> None:
    for value in values:
        for i in range(2, at.rank(value)):
            at.freeze(value, i, _SPATIAL)


def conv(at: Atoms, node: ir.Node) -> None:
    """Conv and ConvTranspose: plain, depthwise (one input channel in each group), and grouped.

    In the last case every group loses the same positions, so that groups stay equally large.
    """
    x, weight, y, groups = required(node, 0), required(node, 1), node.outputs[0], integer(node, "group", 1)
    if stored_origin(weight) is None:
        raise RefusedError("its weight is computed")
    back = node.op_type == "ConvTranspose"
    at.same(x, 0, y, 0)
    _spatial(at, x, weight, y)
    into, out = at.axis(x, 1), at.axis(y, 1)
    first, second = at.axis(weight, 0), at.axis(weight, 1)
    if groups == 1:
        at.contract(Use(node, x, 1, weight, 0 if back else 1))
        at.unite(out, second if back else first)
    elif into.count == groups:
        _depthwise(at, node, back=back)
    elif not into.count or into.count % groups or out.count % groups:
        raise RefusedError(f"{groups} groups do not fit its channels")
    else:
        use = Use(node, x, 1, weight, 0 if back else 1, 1 if back else groups)
        at.contract(use)
        for axis in (into, out):
            positions = axis.atoms.reshape(groups, -1)
            at.pair(np.broadcast_to(positions[0], positions.shape).reshape(-1), positions.reshape(-1))
        stored = np.tile(second.atoms, groups) if back else first.atoms
        if len(stored) == out.count:
            at.pair(stored, out.atoms)
    rows(at, input_at(node, 2), out)


def _depthwise(at: Atoms, node: ir.Node, *, back: bool) -> None:
    """A group is a unit: its input channel with all its output channels."""
    weight = required(node, 1)
    into, out = at.axis(required(node, 0), 1), at.axis(node.outputs[0], 1)
    each = max(out.count // into.count, 1)
    if out.count != into.count * each:
        raise RefusedError("the groups do not fit the output channels")
    at.pair(np.repeat(into.atoms, each), out.atoms)
    at.unite(at.axis(weight, 0), into if back else out)
    if back:
        at.freeze(weight, 1, "each group has these output channels")


def gemm(at: Atoms, node: ir.Node) -> None:
    """`alpha * A' * B' + beta * C`."""
    left, right, y = required(node, 0), required(node, 1), node.outputs[0]
    turned = integer(node, "transA", 0), integer(node, "transB", 0)
    at.same(left, 1 if turned[0] else 0, y, 0)
    at.same(right, 0 if turned[1] else 1, y, 1)
    _sum(at, node, (left, 0 if turned[0] else 1), (right, 1 if turned[1] else 0))
    added = input_at(node, 2)
    if added is not None:
        for i in range(at.rank(added)):
            at.same(added, i, y, i + 2 - at.rank(added))


def matmul(at: Atoms, node: ir.Node) -> None:
    """Outer axes are broadcast; the sum runs over the last axis of one and the last but one of the other."""
    left, right, y = required(node, 0), required(node, 1), node.outputs[0]
    ranks = at.rank(left), at.rank(right)
    if min(ranks) < 2:
        raise RefusedError("a factor is a vector")
    for value, rank in ((left, ranks[0]), (right, ranks[1])):
        for i in range(rank - 2):
            at.same(value, i, y, i + at.rank(y) - rank)
    at.same(left, ranks[0] - 2, y, at.rank(y) - 2)
    at.same(right, ranks[1] - 1, y, at.rank(y) - 1)
    _sum(at, node, (left, ranks[0] - 1), (right, ranks[1] - 2))


def _sum(at: Atoms, node: ir.Node, left: tuple[ir.Value, int], right: tuple[ir.Value, int]) -> None:
    if stored_origin(right[0]) is not None:
        at.contract(Use(node, *left, *right))
    elif stored_origin(left[0]) is not None:
        at.contract(Use(node, *right, *left))
    else:
        for value, axis in (left, right):
            at.freeze(value, axis, "two activations are multiplied along it")


def batch_norm(at: Atoms, node: ir.Node) -> None:
    """Every parameter has one element for each channel."""
    if used(node.outputs[1:]):
        raise RefusedError("it trains")
    x = required(node, 0)
    if at.rank(x) < 2:
        raise RefusedError("its input has no channels")
    for i in range(at.rank(x)):
        at.same(x, i, node.outputs[0], i)
    for value in node.inputs[1:]:
        rows(at, value, at.axis(x, 1))


def instance_norm(at: Atoms, node: ir.Node) -> None:
    """As BatchNormalization, with statistics over the axes behind the channels."""
    batch_norm(at, node)
    for i in range(2, at.rank(required(node, 0))):
        at.freeze(node.inputs[0], i, _NORMALIZED)


def group_norm(at: Atoms, node: ir.Node) -> None:
    """Channels are normalized in groups; they stay."""
    x = required(node, 0)
    at.same(x, 0, node.outputs[0], 0)
    for value in (x, node.outputs[0], *node.inputs[1:]):
        for i in range(min(1, at.rank(value) - 1), at.rank(value)):
            at.freeze(value, i, _NORMALIZED)


def layer_norm(at: Atoms, node: ir.Node) -> None:
    """Axes from `axis` on are normalized together; they stay."""
    x = required(node, 0)
    rank = at.rank(x)
    first = integer(node, "axis", -1) % rank
    for i in range(rank):
        if i < first:
            at.same(x, i, node.outputs[0], i)
        else:
            at.freeze(x, i, _NORMALIZED)
            at.freeze(node.outputs[0], i, _NORMALIZED)
    for value in (*node.inputs[1:], *node.outputs[1:]):
        at.freeze(value, None, _NORMALIZED)


def pool(at: Atoms, node: ir.Node) -> None:
    """Batch and channels pass."""
    x, y = required(node, 0), node.outputs[0]
    if used(node.outputs[1:]):
        raise RefusedError("it gives indices that count over channels")
    at.same(x, 0, y, 0)
    at.same(x, 1, y, 1)
    _spatial(at, x, y)


RULES: Mapping[str, Callable[[Atoms, ir.Node], None]] = {
    "AveragePool": pool,
    "BatchNormalization": batch_norm,
    "Conv": conv,
    "ConvTranspose": conv,
    "Gemm": gemm,
    "GlobalAveragePool": pool,
    "GlobalLpPool": pool,
    "GlobalMaxPool": pool,
    "GroupNormalization": group_norm,
    "InstanceNormalization": instance_norm,
    "LayerNormalization": layer_norm,
    "LpPool": pool,
    "MatMul": matmul,
    "MaxPool": pool,
    "RMSNormalization": layer_norm,
}
