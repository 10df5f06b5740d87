"""Two models in one graph: the same samples then give rows of both at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from onnxcomp.activations import Moments, moments_of, observe
from onnxcomp.data import Batches
from onnxcomp.passes.base import drop_unused_initializers
from onnxcomp.passes.prune.repair.consumers import Consumer

_PREFIX = "onnxcomp_candidate/"


def observe_both(
    reference: ir.Model,
    candidate: ir.Model,
    pairs: Sequence[tuple[Consumer, ir.Node, ir.Node]],
    data: Batches,
    *,
    workdir: Path,
    store: Path | None,
    part: tuple[int, int],
) -> list[Moments]:
    """The moments of rows (x, z): what each consumer reads in the reference and in the candidate.

    Args:
        reference: stays as it is.
        candidate: likewise; with the same inputs.
        pairs: (consumer, its node in the reference, its node in the candidate).
        data: samples.
        workdir: a private folder.
        store: a folder that keeps them, as for `observe`.
        part: likewise.
    """
    numbers = [{node: i for i, node in enumerate(model.graph)} for model in (reference, candidate)]
    both, other = reference.clone(), candidate.clone()
    nodes = [list(both.graph), list(other.graph)]
    both.graph.outputs.clear()
    other.graph.outputs.clear()
    _take_in(both, other)
    wanted: dict[str, list[Moments]] = {}
    seen = []
    for number, (consumer, ours, theirs) in enumerate(pairs):
        first, second = nodes[0][numbers[0][ours]], nodes[1][numbers[1][theirs]]
        joined = _joined(both, consumer, first.inputs[0], second.inputs[0], f"onnxcomp_both_{number}")
        both.graph.outputs.append(joined)
        seen.append(moments_of(first))
        wanted[joined.name or ""] = [seen[-1]]
    common.RemoveUnusedNodesPass()(both)
    drop_unused_initializers(both)
    observe(both, data, wanted, workdir=workdir, store=store, part=part)
    return seen


def _take_in(both: ir.Model, other: ir.Model) -> None:
    """Move the nodes and initializers of `other` over, under names of their own; inputs and equal weights are one."""
    inputs = {value.name: value for value in both.graph.inputs}
    for value in other.graph.inputs:
        value.replace_all_uses_with(inputs[value.name])
    for name, value in list(other.graph.initializers.items()):
        ours = both.graph.initializers.get(name)
        if ours is not None and ours.const_value is value.const_value:
            value.replace_all_uses_with(ours)
            continue
        del other.graph.initializers[name]
        value.name = _PREFIX + name
        both.graph.register_initializer(value)
    for node in list(other.graph):
        other.graph.remove(node)
        node.name = _PREFIX + node.name if node.name else node.name
        for output in node.outputs:
            output.name = _PREFIX + output.name if output.name else output.name
        both.graph.append(node)


def _joined(both: ir.Model, consumer: Consumer, first: ir.Value | None, second: ir.Value | None, name: str) -> ir.Value:
    """The channels of both, group by group."""
    axis = 1 if consumer.use.node.op_type == "Conv" else -1
    join = ir.node("Concat", [first, second], {"axis": axis}, name=name)
    join.outputs[0].name = name
    both.graph.append(join)
    groups = consumer.use.groups
    if groups == 1:
        return join.outputs[0]
    whole, left = consumer.matrix.shape[1], len(consumer.kept)
    order = [
        [*range(g * whole, (g + 1) * whole), *range(groups * whole + g * left, groups * whole + (g + 1) * left)]
        for g in range(groups)
    ]
    tensor = ir.tensor(np.array(order).reshape(-1), dtype=ir.DataType.INT64, name=f"{name}_order")
    indices = ir.Value(
        name=tensor.name,
        const_value=tensor,
        shape=ir.Shape([len(order) * len(order[0])]),
        type=ir.TensorType(tensor.dtype),
    )
    both.graph.register_initializer(indices)
    turn = ir.node("Gather", [join.outputs[0], indices], {"axis": axis}, name=f"{name}_turned")
    turn.outputs[0].name = f"{name}_turned"
    both.graph.append(turn)
    return turn.outputs[0]
