"""Rewrites keep the outputs."""

from __future__ import annotations

import builders
import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnxscript import rewriter

from onnxcomp.passes import Simplify
from onnxcomp.passes.rules import rules
from onnxcomp.pipeline import optimize_file
from onnxcomp.runtime import open_session


def test_batch_normalization_is_folded(tmp_path):
    path = builders.save(builders.cnn(), tmp_path / "m.onnx")
    record = optimize_file(path, tmp_path / "o.onnx", [Simplify()])
    assert record.passes[0].effect["removed"]["ai.onnx::BatchNormalization"] == 1
    assert record.equivalence < 1e-5
    image = builders.samples(5, 3, 8, 8)
    want, got = (open_session(p).run({"image": image})["scores"] for p in (path, tmp_path / "o.onnx"))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_constants_fold_and_duplicates_merge(tmp_path):
    nodes = [
        helper.make_node("Add", ["one", "one"], ["two"]),
        helper.make_node("Mul", ["x", "two"], ["a"]),
        helper.make_node("Mul", ["x", "two"], ["b"]),
        helper.make_node("Identity", ["b"], ["c"]),
        helper.make_node("Add", ["a", "c"], ["y"]),
    ]
    one = numpy_helper.from_array(np.ones(4, np.float32), "one")
    proto = builders.model(nodes, [builders.value("x", 2, 4)], [builders.value("y", 2, 4)], [one])
    record = optimize_file(builders.save(proto, tmp_path / "m.onnx"), tmp_path / "o.onnx", [Simplify()])
    assert record.passes[0].effect["nodes"] == {"before": 5, "after": 2}


def test_only_exact_no_ops_are_removed(tmp_path):
    """The 1e-10 before a logarithm stays: without it the logarithm of 0 is infinite."""
    nodes = [
        helper.make_node("Add", ["x", "zero"], ["a"]),
        helper.make_node("Mul", ["a", "one"], ["b"]),
        helper.make_node("Add", ["b", "tiny"], ["c"]),
        helper.make_node("Mul", ["c", "nearly"], ["d"]),
        helper.make_node("Log", ["d"], ["y"]),
    ]
    values = {"zero": 0.0, "one": 1.0, "tiny": 1e-10, "nearly": 1 + 1e-6}
    stored = [numpy_helper.from_array(np.float32(value), name) for name, value in values.items()]
    proto = builders.model(nodes, [builders.value("x", 2, 4)], [builders.value("y", 2, 4)], stored)
    optimize_file(builders.save(proto, tmp_path / "m.onnx"), tmp_path / "o.onnx", [Simplify()])
    session = open_session(tmp_path / "o.onnx")
    assert np.isfinite(session.run({"x": np.zeros((2, 4), np.float32)})["y"]).all()
    assert [n.op_type for n in onnx.load(tmp_path / "o.onnx").graph.node] == ["Add", "Mul", "Log"]


def test_all_rules_of_the_optimizer_are_there_but_the_inexact():
    """A new version of onnxscript that brings rules makes this fail, so that we look at them."""
    ours = {id(rule) for rule in rules()}
    missing = [rule for rule in rewriter._DEFAULT_REWRITE_RULES if id(rule) not in ours]
    assert len(missing) == 9  # x + 0 and x * 1 in both orders, x - 0, x / 1, three of BatchNormalization


def test_names_of_an_unnamed_graph_are_not_invented(tmp_path):
    proto = builders.cnn()
    for node in proto.graph.node:
        node.name = ""
    optimize_file(builders.save(proto, tmp_path / "m.onnx"), tmp_path / "o.onnx", [Simplify()])
    assert {n.name for n in onnx.load(tmp_path / "o.onnx").graph.node} == {""}
