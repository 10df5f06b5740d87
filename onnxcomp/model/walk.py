"""Iterate over the parts of a protobuf model: graphs, nodes and tensors, subgraphs and functions included."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx


def node_lists(proto: onnx.ModelProto) -> Iterator[tuple[Iterable[onnx.NodeProto], int]]:
    """(nodes, nesting depth) of the main graph, of every function and of every subgraph."""
    stack: list[tuple[Iterable[onnx.NodeProto], int]] = [(proto.graph.node, 0)]
    stack += [(function.node, 0) for function in proto.functions]
    while stack:
        nodes, depth = stack.pop()
        yield nodes, depth
        for node in nodes:
            for graph in subgraphs(node):
                stack.append((graph.node, depth + 1))


def nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node of the model."""
    for found, _ in node_lists(proto):
        yield from found


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs in a node's attributes (If, Loop, Scan)."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The main graph and every subgraph, those inside functions too."""
    yield proto.graph
    for node in nodes(proto):
        yield from subgraphs(node)


def tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every stored tensor: initializers, sparse parts, tensors in attributes."""
    for graph in graphs(proto):
        yield from graph.initializer
    for node in nodes(proto):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
    for sparse in sparse_tensors(proto):
        yield sparse.values
        yield sparse.indices


def sparse_tensors(proto: onnx.ModelProto) -> Iterator[onnx.SparseTensorProto]:
    """Every sparse tensor: initializers and those in attributes."""
    for graph in graphs(proto):
        yield from graph.sparse_initializer
    for node in nodes(proto):
        for attribute in node.attribute:
            if attribute.HasField("sparse_tensor"):
                yield attribute.sparse_tensor
            yield from attribute.sparse_tensors
