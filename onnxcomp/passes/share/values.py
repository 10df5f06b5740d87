"""Values of a model: the names they have, and stored ones that nothing reads any more."""

from __future__ import annotations

import onnx_ir as ir


def names(model: ir.Model) -> list[str]:
    """Of all values that a node of the main graph or of a subgraph can read, one for each value."""
    found: list[str | None] = []
    for graph in model.graphs():
        found += {value.name for value in (*graph.inputs, *graph.initializers.values())}
    found += [value.name for node in model.graph.all_nodes() for value in node.outputs]
    return [name for name in found if name]


def remove(value: ir.Value) -> None:
    """Take an initializer, or a Constant node, that nothing reads any more out of its graph."""
    node = value.producer()
    graph = value.graph if node is None else node.graph
    assert graph is not None
    if node is not None:
        graph.remove(node, safe=True)
        return
    del graph.initializers[value.name or ""]
    if value.is_graph_input():
        graph.inputs.remove(value)
