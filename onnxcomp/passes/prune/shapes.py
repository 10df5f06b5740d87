"""Sizes that a graph reads off its own tensors: where they go, and which axes must stay for it."""

from __future__ import annotations

import onnx_ir as ir

from onnxcomp.passes.fusions.size import integer
from onnxcomp.passes.prune.atoms import Atoms

#: (value, axis) whose size an element depends on
_Origins = frozenset[tuple[ir.Value, int]]

#: what hands sizes on: with one element for each of its inputs' elements, or the elements themselves
_PASSING = {"Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze"}
_MIXING = {"Add", "Div", "Max", "Min", "Mul", "Sub"}

#: operator -> the input that says a shape, which is written anew where an axis is cut
SHAPE_INPUTS = {"Expand": 1, "Reshape": 1, "Resize": 3}

_NONE: _Origins = frozenset()


def keep_read_sizes(at: Atoms, graph: ir.Graph) -> None:
    """Freeze axes whose size reaches anything but the shape of a Reshape, Expand or Resize."""
    known: dict[ir.Value, tuple[_Origins, ...]] = {}
    for node in graph:
        at.node = node
        if node.op_type == "Shape" and not node.domain and node.inputs[0] is not None:
            measured = node.inputs[0]
            rank = len(at.sizes.of(measured) or ())
            span = range(rank)[integer(node, "start", 0) : integer(node, "end", rank)]
            known[node.outputs[0]] = tuple(frozenset({(measured, i)}) for i in span)
        elif node.op_type == "Size" and not node.domain:
            at.freeze(node.inputs[0], None, "the graph computes with its size")
        elif any(value in known for value in node.inputs if value is not None):
            found = None if node.domain else _handed_on(at, node, known)
            if found is not None:
                known[node.outputs[0]] = found
                continue
            allowed = None if node.domain else SHAPE_INPUTS.get(node.op_type)
            for i, value in enumerate(node.inputs):
                if value in known and i != allowed:
                    for owner, axis in frozenset().union(*known[value]):
                        at.freeze(owner, axis, "the graph computes with its size")


def _handed_on(at: Atoms, node: ir.Node, known: dict[ir.Value, tuple[_Origins, ...]]) -> tuple[_Origins, ...] | None:
    """The origins of the output's elements; None where the node uses them up."""

    def of(value: ir.Value | None) -> tuple[_Origins, ...]:
        if value is None:
            return ()
        dims = at.sizes.of(value) or ()
        return known.get(value, (_NONE,) * (dims[0].factor if dims and not dims[0].names else 1))

    everything = (frozenset().union(*(o for value in node.inputs for o in of(value))),)
    parts = [of(value) for value in node.inputs]
    if node.op_type in _PASSING and node.inputs[0] in known:
        return parts[0]
    if node.op_type == "Concat":
        return tuple(o for part in parts for o in part)
    if node.op_type in ("Gather", "Slice") and node.inputs[0] in known:
        return _picked(at, node, parts[0]) or everything
    if node.op_type in _MIXING:
        same = len({len(part) for part in parts}) == 1
        mixed = tuple(frozenset().union(*column) for column in zip(*parts, strict=True)) if same else everything
        return mixed if same else mixed * max(map(len, parts))
    return None


def _picked(at: Atoms, node: ir.Node, elements: tuple[_Origins, ...]) -> tuple[_Origins, ...] | None:
    """Of some elements; None where the graph computes which."""
    numbers = [at.sizes.constants(value) for value in node.inputs[1:]]
    known = [n for n in numbers if n]
    if len(known) != len(numbers):
        return None
    if node.op_type == "Gather":
        return tuple(elements[i] for i in known[0] if -len(elements) <= i < len(elements))
    step = known[3][0] if len(known) > 3 else 1
    return elements[known[0][0] : known[1][0] : step] if step else None
