"""Nodes by how many of them stand before each: what is changed at one level changes what the next one reads."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx_ir as ir


def levels(graph: ir.Graph, nodes: Collection[ir.Node]) -> Mapping[ir.Node, int]:
    """{node of the graph: the most of `nodes` on a way to it, itself not counted}, for each of `nodes`."""
    chosen = set(nodes)
    found: dict[ir.Node, int] = {}
    depths: dict[ir.Value, int] = {}
    for node in graph:  # sorted, as the format wants it
        read = [value for value in node.inputs if value is not None]
        for attribute in node.attributes.values():
            if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
                read = list(depths)  # a body may read anything
        depth = max((depths.get(value, 0) for value in read), default=0)
        if node in chosen:
            found[node] = depth
            depth += 1
        depths.update(dict.fromkeys(node.outputs, depth))
    return found
