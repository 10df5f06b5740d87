"""What a model weighs."""

from __future__ import annotations

import builders
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import onnxcomp
from onnxcomp.inspect import infer_shapes, inspect, measure, stored_origin, weights
from onnxcomp.model import load
from onnxcomp.passes import ClusterWeights


def test_counts_of_a_cnn_by_hand(tmp_path):
    found = inspect(builders.save(builders.cnn(), tmp_path / "m.onnx"))
    contents = found.contents
    parameters = 16 * 3 * 9 + 4 * 16 + 16 * 16 * 9 + 16 + 160 + 10
    assert contents.parameters == parameters
    assert contents.bytes_by_dtype == {"float32": 4 * parameters}
    assert contents.macs == 16 * 64 * 27 + 16 * 64 * 144 + 160
    assert contents.total_weights == 3
    assert contents.quantized_weights == 0
    assert contents.ops["ai.onnx::Conv"] == 2
    assert found.to_json()["model"]["bytes"] == (tmp_path / "m.onnx").stat().st_size


def test_tied_tensors_and_zeros(tmp_path):
    proto = builders.mlp(width=16)
    same = numpy_helper.to_array(proto.graph.initializer[1]).copy()
    same[:8] = 0
    for i in (1,):
        proto.graph.initializer[i].CopyFrom(numpy_helper.from_array(same, "b1"))
    proto.graph.initializer.append(numpy_helper.from_array(same, "copy"))
    found = measure(load(builders.save(proto, tmp_path / "m.onnx")))
    assert found.tied == 1
    assert found.zero_fraction == pytest.approx(16 / found.parameters)


def test_weights_in_constant_nodes_and_behind_a_transpose_count(tmp_path):
    constant = helper.make_node("Constant", [], ["w"], value=builders.weight("w", 8, 4))
    turned = helper.make_node("Transpose", ["w"], ["wt"])
    proto = builders.model(
        [constant, turned, helper.make_node("MatMul", ["x", "wt"], ["y"], name="mm")],
        [builders.value("x", 2, 4)],
        [builders.value("y", 2, 8)],
    )
    model = load(builders.save(proto, tmp_path / "m.onnx"))
    assert [w.node.name for w in weights(model)] == ["mm"]
    assert measure(model).parameters == 32


def test_weights_in_subgraphs_are_found_and_marked(tmp_path):
    model = load(builders.save(builders.branch(), tmp_path / "m.onnx"))
    assert sorted((w.value.name, w.nested) for w in weights(model)) == [("inner", True), ("outer", True)]


def test_integer_tables_are_not_weights(tmp_path):
    table = numpy_helper.from_array(np.arange(20).reshape(5, 4), "table")
    proto = builders.model(
        [helper.make_node("Gather", ["table", "i"], ["y"])],
        [builders.value("i", 3, dtype=onnx.TensorProto.INT64)],
        [builders.value("y", 3, 4, dtype=onnx.TensorProto.INT64)],
        [table],
    )
    found = measure(load(builders.save(proto, tmp_path / "m.onnx")))
    assert (found.total_weights, found.parameters, found.macs) == (0, 0, 0)


def test_computed_values_have_no_origin(tmp_path):
    model = load(builders.save(builders.mlp(), tmp_path / "m.onnx"))
    assert stored_origin(model.graph.outputs[0]) is None
    assert stored_origin(None) is None


def test_unknown_sizes_are_said_not_guessed(tmp_path):
    found = measure(load(builders.save(builders.encoder(), tmp_path / "m.onnx")))
    assert found.macs is None
    assert found.macs_unknown == 2


def test_inspect_is_module_and_function(tmp_path):
    path = builders.save(builders.relu(), tmp_path / "m.onnx")
    assert onnxcomp.inspect(path).contents.parameters == 0
    assert onnxcomp.inspect.inspect is inspect


def test_all_sample_models(shared):
    """Figures against those that other tools counted (inventory.json)."""
    import json

    for entry in json.loads((shared / "models/inventory.json").read_text()):
        found = inspect(shared / "models" / entry["file"])
        assert found.file.sha256 == entry["sha256"]
        assert found.file.bytes == entry["size"]
        quantized = found.contents.quantized_weights > 0
        # others count float initializers only
        floats = entry["params"] + entry["const_nodes_elems"]
        assert entry["params"] <= found.contents.parameters <= floats or quantized, entry["file"]


def q_gemm():
    """x (4, 8) uint8 -> QGemm of com.microsoft by (16, 8), QLinearAdd to itself, MatMulInteger by (16, 2) -> y."""
    unit, zero = numpy_helper.from_array(np.float32(1), "s"), numpy_helper.from_array(np.uint8(0), "z")
    weights = [
        numpy_helper.from_array(np.ones(shape, np.uint8), name) for name, shape in (("w", (16, 8)), ("v", (16, 2)))
    ]
    proto = builders.model(
        [
            helper.make_node(
                "QGemm", ["x", "s", "z", "w", "s", "z", "", "s", "z"], ["g"], domain="com.microsoft", transB=1
            ),
            helper.make_node("QLinearAdd", ["g", "s", "z", "g", "s", "z", "s", "z"], ["a"], domain="com.microsoft"),
            helper.make_node("MatMulInteger", ["a", "v"], ["y"]),
        ],
        [builders.value("x", 4, 8, dtype=onnx.TensorProto.UINT8)],
        [builders.value("y", 4, 2, dtype=onnx.TensorProto.INT32)],
        [unit, zero, *weights],
    )
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return proto


def test_sizes_are_known_behind_operators_that_onnx_does_not_know(tmp_path):
    model = load(builders.save(q_gemm(), tmp_path / "m.onnx"))
    before = [(n.domain, n.op_type, [v and v.name for v in n.inputs], sorted(n.attributes)) for n in model.graph]
    assert measure(model).macs == 4 * 8 * 16 + 4 * 16 * 2
    infer_shapes(model)
    after = [(n.domain, n.op_type, [v and v.name for v in n.inputs], sorted(n.attributes)) for n in model.graph]
    assert after == before


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("group_size", [None, 128])
def test_codes_count_as_the_weights_that_they_stand_for(bits, group_size, tmp_path):
    """Packed bytes are no parameters; what else is in the model counts as before."""
    before = inspect(builders.save(builders.mlp(width=512), tmp_path / "m.onnx")).contents
    model = onnxcomp.optimize(tmp_path / "m.onnx", [ClusterWeights(bits=bits, group_size=group_size)]).model
    after = measure(model)
    assert after.parameters == before.parameters
    assert after.clustered_weights == after.total_weights == before.total_weights == 2
    assert before.clustered_weights == after.quantized_weights == after.tied == 0
