"""Who reads a value of the main graph, and where all ways from a node meet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir


def users(graph: ir.Graph) -> dict[ir.Value, list[ir.Node]]:
    """{value: nodes of the main graph that read it, themselves or in their bodies}."""
    found: dict[ir.Value, list[ir.Node]] = {}
    for node in graph:
        for value in needed(node):
            found.setdefault(value, []).append(node)
    return found


def needed(node: ir.Node) -> Iterator[ir.Value]:
    """What a node reads, in its bodies too."""
    yield from (value for value in node.inputs if value is not None)
    for body in bodies(node):
        for inner in body.all_nodes():
            yield from (value for value in inner.inputs if value is not None)
        yield from body.outputs


def bodies(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs in a node's attributes (If, Loop, Scan)."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def joins(graph: ir.Graph, readers: Mapping[ir.Value, Sequence[ir.Node]]) -> dict[ir.Node, ir.Node | None]:
    """{node: the first node that all ways from it to outputs come through} (immediate post-dominators)."""
    found: dict[ir.Node, ir.Node | None] = {}
    depth: dict[ir.Node | None, int] = {None: 0}
    for node in reversed(graph):
        after = {user for value in node.outputs for user in readers.get(value, ())}
        met: ir.Node | None = None
        if after and not any(value.is_graph_output() for value in node.outputs):
            met, *others = after
            for user in others:
                met = _meet(met, user, found, depth)
        found[node] = met
        depth[node] = depth[met] + 1
    return found


def _meet(
    first: ir.Node | None,
    second: ir.Node | None,
    found: Mapping[ir.Node, ir.Node | None],
    depth: Mapping[ir.Node | None, int],
) -> ir.Node | None:
    while first is not second:
        if depth[first] >= depth[second]:
            first = None if first is None else found[first]
        else:
            second = None if second is None else found[second]
    return first
