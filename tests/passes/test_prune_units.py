"""Structured pruning: the units of graphs of every kind, and the reasons for what stays."""

from __future__ import annotations

import builders
import numpy as np
import onnx
import prune_graphs
import pytest
from onnx import helper
from onnx_ir.passes import common

from onnxcomp.model import load
from onnxcomp.passes.batchnorm import make_constants
from onnxcomp.passes.prune.analysis import analyse


def analysed(proto, folder, **options):
    model = load(builders.save(proto, folder / "m.onnx"))
    make_constants(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    return analyse(model, **options)


def stays(found, node):
    return dict(found.refused)[node]


@pytest.mark.parametrize("name", prune_graphs.CUT)
def test_groups(name, tmp_path):
    found = analysed(prune_graphs.cut_graph(name), tmp_path)
    assert [len(group) for group in found.groups] == prune_graphs.CUT[name][2]
    assert all(group.uses for group in found.groups)


def test_uses_say_what_a_repair_needs(tmp_path):
    """For each sum over a unit: the activation, the weight, and which index is which unit."""
    found = analysed(prune_graphs.cut_graph("grouped"), tmp_path)
    first, second = found.groups
    (use,) = first.uses
    assert (use.node.name, use.activation.name, use.activation_axis) == ("Conv_1", "a", 1)
    assert (use.initializer, use.weight_axis, use.groups) == ("w2", 1, 2)
    assert use.matrix().shape == (12, 4, 3, 3)
    assert found.units_of(first, use.activation, 1).tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert found.units_of(first, use.weight, 1).tolist() == [0, 1, 2, 3]
    assert first.members == (("w1", 0), ("w2", 1))
    assert (first.channels, second.channels) == (2, 2)
    assert set(second.members) == {("w2", 0), ("b2", 0), ("w3", 1)}


def test_a_use_of_a_turned_weight(tmp_path):
    found = analysed(prune_graphs.cut_graph("turned weight"), tmp_path)
    (use,) = found.groups[0].uses
    assert use.initializer == "w2"
    assert use.matrix().shape == (8, 5)
    assert found.groups[0].members == (("w1", 0), ("w2", 1))


FROZEN = {
    "softmax": ("(float[N,4] x) => (float[N,5] y) {a = MatMul (x, w1) s = Softmax (a) y = MatMul (s, w2)}", "summed"),
    "mean": (
        (
            "(float[N,4] x) => (float[N,5] y) {a = MatMul (x, w1) m = ReduceMean <axes=[1]> (a) s = Sub (a, m)"
            " y = MatMul (s, w2)}"
        ),
        "summed",
    ),
    "layer norm": (
        "(float[N,4] x) => (float[N,5] y) {a = MatMul (x, w1) s = LayerNormalization (a, w3) y = MatMul (s, w2)}",
        "normalized",
    ),
    "output": ("(float[N,4] x) => (float[N,8] a, float[N,5] y) {a = MatMul (x, w1) y = MatMul (a, w2)}", "output 'a'"),
    "input": (
        "(float[N,4] x, float[N,8] z) => (float[N,5] y) {a = MatMul (x, w1) s = Add (a, z) y = MatMul (s, w2)}",
        "input 'z'",
    ),
    "no rule": (
        '(float[N,4] x) => (float[N,5] y) {a = MatMul (x, w1) s = Einsum <equation="ab->ab"> (a) y = MatMul (s, w2)}',
        "no rule for Einsum",
    ),
    "size": (
        (
            "(float[N,4] x) => (float[N,5] y) {a = MatMul (x, w1) n = Shape <start=1> (a) f = Cast <to=1> (n)"
            " s = Div (a, f) y = MatMul (s, w2)}"
        ),
        "computes with its size",
    ),
    "places of maxima": (
        (
            "(float[N,4,6,6] x) => (float[N,5,3,3] y, int64[N,8,3,3] k) {a = Conv (x, v1)"
            " m, k = MaxPool <kernel_shape=[2,2], strides=[2,2]> (a) y = Conv (m, v2)}"
        ),
        "indices that count over channels",
    ),
    "every other": (
        "(float[N,4] x) => (float[N,5] y) {a = MatMul (x, w1) s = Slice (a, i0, i8, i1, i2) y = MatMul (s, w4)}",
        "every other index",
    ),
}


@pytest.mark.parametrize("name", FROZEN)
def test_what_stays_has_its_reason(name, tmp_path):
    text, reason = FROZEN[name]
    weights = {"w1": (4, 8), "w2": (8, 5), "w3": (8,), "w4": (4, 5), "v1": (8, 4, 1, 1), "v2": (5, 8, 1, 1)}
    weights |= {f"i{i}": np.array([i]) for i in (0, 1, 2, 8)}
    used = {key: shape for key, shape in weights.items() if key in text}
    found = analysed(prune_graphs.build(text, used), tmp_path)
    assert not found.groups
    assert any(reason in why for _, why in found.refused), found.refused


def test_the_body_of_an_if_keeps_what_it_reads(tmp_path):
    """The weight of the outer graph is cut nowhere, since the branch reads the activation too."""
    body = helper.make_graph([helper.make_node("Neg", ["a"], ["t"])], "then", [], [builders.value("t", "N", 8)])
    other = helper.make_graph([helper.make_node("Abs", ["a"], ["o"])], "else", [], [builders.value("o", "N", 8)])
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"], name="first"),
        helper.make_node("If", ["flag"], ["i"], name="if", then_branch=body, else_branch=other),
        helper.make_node("MatMul", ["a", "w2"], ["y"], name="second"),
    ]
    inputs = [builders.value("x", "N", 4), builders.value("flag", dtype=onnx.TensorProto.BOOL)]
    outputs = [builders.value("y", "N", 5), builders.value("i", "N", 8)]
    weights = [builders.weight("w1", 4, 8), builders.weight("w2", 8, 5)]
    found = analysed(builders.model(nodes, inputs, outputs, weights), tmp_path)
    assert not found.groups
    assert stays(found, "if") == "If runs a subgraph, which is not looked into"
    assert "body of an If" in stays(found, "first") or "at if" in stays(found, "first")


def test_recurrent_fused_and_local_operators_are_refused_by_name(tmp_path):
    nodes = [
        helper.make_node("LSTM", ["x", "w", "r"], ["h"], name="cells", hidden_size=8),
        helper.make_node("Squeeze", ["h", "axis"], ["s"], name="squeeze"),
        helper.make_node("FusedMatMul", ["s", "v"], ["y"], name="fused", domain="com.microsoft"),
    ]
    weights = [builders.weight("w", 1, 32, 4), builders.weight("r", 1, 32, 8), builders.weight("v", 8, 5)]
    weights.append(onnx.numpy_helper.from_array(np.array([1]), "axis"))
    proto = builders.model(nodes, [builders.value("x", "S", "N", 4)], [builders.value("y", "S", "N", 5)], weights)
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    found = analysed(proto, tmp_path)
    assert not found.groups
    assert "recurrent" in stays(found, "cells")
    assert "ONNX Runtime's optimizer" in stays(found, "fused")


def test_old_broadcasting_is_refused(tmp_path):
    """Before opset 7 a bias of a convolution was added along `axis`."""
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="first", kernel_shape=[1, 1]),
        helper.make_node("Add", ["a", "b"], ["s"], name="add", axis=1, broadcast=1),
        helper.make_node("Conv", ["s", "w2"], ["y"], name="second", kernel_shape=[1, 1]),
    ]
    weights = [builders.weight("w1", 8, 3, 1, 1), builders.weight("b", 8), builders.weight("w2", 5, 8, 1, 1)]
    proto = builders.model(
        nodes, [builders.value("x", 1, 3, 8, 8)], [builders.value("y", 1, 5, 8, 8)], weights, opset=6
    )
    found = analysed(proto, tmp_path)
    assert not found.groups
    assert "other rules" in stays(found, "add")


def test_excluded_nodes_stay(tmp_path):
    found = analysed(prune_graphs.cut_graph("conv"), tmp_path, excluded={"Conv_3"})
    assert not found.groups
    assert "excluded" in stays(found, "Conv_0")


def test_unions_are_kept_by_axis(tmp_path):
    """500 nodes of 64 channels: what is said about an axis is one entry, not one for each index."""
    lines, weights = ["a0 = Conv (x, w)"], {"w": (64, 3, 3, 3)}
    for i in range(166):
        lines += [f"c{i} = Conv (a{i}, w{i})", f"r{i} = Relu (c{i})", f"a{i + 1} = Add (a{i}, r{i})"]
        weights[f"w{i}"] = (64, 64, 1, 1)
    text = f"(float[N,3,40,40] x) => (float[N,5,38,38] y) {{ {' '.join(lines)} y = Conv (a166, v) }}"
    found = analysed(prune_graphs.build(text, {**weights, "v": (5, 64, 1, 1)}), tmp_path)
    assert [len(group) for group in found.groups] == [64]
    assert found.atoms.mark()[0] < 5 * 500
