"""Rewrites keep the outputs."""

from __future__ import annotations

import builders
import numpy as np
from onnx import helper, numpy_helper

from onnxcomp.passes import Simplify
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


def test_names_of_an_unnamed_graph_are_not_invented(tmp_path):
    proto = builders.cnn()
    for node in proto.graph.node:
        node.name = ""
    optimize_file(builders.save(proto, tmp_path / "m.onnx"), tmp_path / "o.onnx", [Simplify()])
    import onnx

    assert {n.name for n in onnx.load(tmp_path / "o.onnx").graph.node} == {""}
