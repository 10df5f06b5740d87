"""From an ONNX graph to a plan: values numbered, functions looked up, what is not wanted left out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import onnx_ir as ir

from onnxcomp.errors import UnsupportedError
from onnxcomp.pytorch.graph_module.call import Node, Plan, Step
from onnxcomp.pytorch.graph_module.dtypes import to_torch
from onnxcomp.pytorch.graph_module.registry import HOST, function_of


class Numbering(dict[ir.Value, int]):
    """A number for each value, given when it is first asked for."""

    def __missing__(self, value: ir.Value) -> int:
        self[value] = len(self)
        return self[value]


def build(model: ir.Model, wanted: Sequence[ir.Value], numbers: Numbering) -> Plan:
    """The steps of the main graph that `wanted` values need. The model has no local functions."""
    return _plan(model.graph, wanted, numbers, model.opset_imports)


def _plan(graph: ir.Graph, wanted: Sequence[ir.Value], numbers: Numbering, opsets: dict[str, int]) -> Plan:
    kept, needed = [], set(wanted)
    for node in reversed(graph):
        if _is_constant(node) or not needed.intersection(node.outputs):
            continue
        kept.append(node)
        needed.update(_reads(node))
    freed = _freed(kept, set(wanted))
    steps = [_step(node, freed[i], needed, numbers, opsets) for i, node in enumerate(kept)]
    inputs = tuple(numbers[value] for value in graph.inputs)
    return Plan(tuple(reversed(steps)), inputs, tuple(numbers[value] for value in wanted))


def _is_constant(node: ir.Node) -> bool:
    return (node.domain, node.op_type) == ("", "Constant")


def _reads(node: ir.Node) -> Iterator[ir.Value]:
    """What the node needs from around it; names inside of its own graphs may be among them."""
    yield from (value for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            graph = attribute.as_graph()
            yield from graph.outputs
            for inner in graph:
                yield from _reads(inner)


def _freed(backwards: Iterable[ir.Node], wanted: set[ir.Value]) -> list[list[ir.Value]]:
    """For each node, last one first: values made in this graph that nothing after it reads."""
    nodes = list(backwards)
    made = {value for node in nodes for value in node.outputs}
    seen = set(wanted)
    freed = []
    for node in nodes:
        last = [v for v in dict.fromkeys(_reads(node)) if v in made and v not in seen]
        seen.update(last)
        freed.append(last)
    return freed


def _step(
    node: ir.Node, frees: list[ir.Value], needed: set[ir.Value], numbers: Numbering, opsets: dict[str, int]
) -> Step:
    opset = opsets.get(node.domain, 1)
    function = function_of(node.domain, node.op_type, opset)
    if function is None:
        raise UnsupportedError(f"no function for {node.op_type}", where=node.name)
    return Step(
        function=function,
        node=Node(
            name=node.name or f"{node.op_type} of {node.outputs[0].name}",
            opset=opset,
            attributes={name: _attribute(a, numbers, opsets) for name, a in node.attributes.items()},
            outputs=len(node.outputs),
            types=tuple(None if value is None else _dtype(value) for value in node.inputs),
        ),
        inputs=tuple(None if value is None else numbers[value] for value in node.inputs),
        outputs=tuple(numbers[value] if value in needed else None for value in node.outputs),
        host=frozenset(HOST.get(node.op_type, ())),
        frees=tuple(numbers[value] for value in frees),
    )


def _dtype(value: ir.Value) -> ir.DataType | None:
    return value.dtype if value.const_value is None else value.const_value.dtype


def _attribute(attribute: ir.Attr, numbers: Numbering, opsets: dict[str, int]) -> Any:
    if attribute.type == ir.AttributeType.GRAPH:
        graph = attribute.as_graph()
        return _plan(graph, list(graph.outputs), numbers, opsets)
    if attribute.type == ir.AttributeType.TENSOR:
        return to_torch(attribute.as_tensor())
    return attribute.value
