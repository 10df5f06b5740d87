"""A product of two activations stays in float unless MatMul is asked for."""

from __future__ import annotations

import builders
import numpy as np
import onnx
import pytest
from onnx import helper

from onnxcomp.model import load
from onnxcomp.passes import QuantizeStatic
from onnxcomp.passes.quantize.policy import float_nodes
from onnxcomp.pipeline import optimize_file

TYPES = ("MatMul", "Gemm", "Conv")


def attention(*, constant_node=False):
    """x (batch, 6, 16) -> q, k -> softmax(q @ k^T) @ k -> y."""
    nodes = [
        helper.make_node("MatMul", ["x", "wq"], ["q"], name="query"),
        helper.make_node("MatMul", ["x", "wk"], ["k"], name="key"),
        helper.make_node("Transpose", ["k"], ["t"], name="turn", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "t"], ["s"], name="scores"),
        helper.make_node("Softmax", ["s"], ["p"], name="softmax", axis=-1),
        helper.make_node("MatMul", ["p", "k"], ["y"], name="mix"),
    ]
    held = [builders.weight("wq", 16, 16), builders.weight("wk", 16, 16)]
    if constant_node:
        nodes.insert(0, helper.make_node("Constant", [], ["wq"], value=held.pop(0)))
    return builders.model(nodes, [builders.value("x", "batch", 6, 16)], [builders.value("y", "batch", 6, 16)], held)


def inputs_of(graph, name):
    """What makes the inputs of a node."""
    makers = {o: n.op_type for n in graph.node for o in n.output}
    return [makers.get(i) for n in graph.node if n.name == name for i in n.input]


@pytest.mark.parametrize(
    ("op_types", "excluded", "left"),
    [
        (TYPES, (), ["scores", "mix"]),
        (TYPES, ("mix",), ["scores"]),
        (("Gemm",), (), []),
    ],
)
@pytest.mark.parametrize("constant_node", [False, True])
def test_products_of_activations_are_named(op_types, excluded, left, constant_node, tmp_path):
    model = load(builders.save(attention(constant_node=constant_node), tmp_path / "m.onnx"))
    assert float_nodes(model, op_types, excluded) == left


def test_a_product_of_another_domain_is_not_named(tmp_path):
    model = load(builders.save(attention(), tmp_path / "m.onnx"))
    for node in model.graph:
        if node.name == "mix":
            node.domain = "com.example"
    assert float_nodes(model, TYPES, ()) == ["scores"]


@pytest.mark.parametrize(("op_types", "quantized"), [(None, False), (("MatMul",), True)])
def test_only_asked_for_are_they_quantized(op_types, quantized, tmp_path):
    path = builders.save(attention(), tmp_path / "m.onnx")
    data = {"x": builders.samples(64, 6, 16)}
    step = QuantizeStatic(op_types=op_types)
    record = optimize_file(path, tmp_path / "o.onnx", [step], data=data, allow_larger=True)
    assert record.passes[0].effect["quantized_weights"] == 2
    assert record.passes[0].effect["skipped"] == []  # they hold no weights
    graph = onnx.load(tmp_path / "o.onnx").graph
    assert inputs_of(graph, "query") == ["DequantizeLinear"] * 2
    for name in ("scores", "mix"):
        assert (inputs_of(graph, name) == ["DequantizeLinear"] * 2) is quantized
    assert np.isfinite(record.fidelity.outputs["y"].sqnr_db)
