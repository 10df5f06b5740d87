"""BatchNormalization folds into the weights around it, or stays with its reason."""

from __future__ import annotations

import builders
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxcomp.errors import NoEffectError
from onnxcomp.passes import FoldBatchNorm, Simplify
from onnxcomp.pipeline import optimize, optimize_file

WEIGHTS = {"Conv": (6, 2, 3, 3), "ConvTranspose": (4, 3, 3, 3), "Gemm": (4, 6)}


def norm(source, target, channels, *, name="norm", **attributes):
    """(node, its parameters)."""
    rng = np.random.default_rng(channels)
    values = {
        "gamma": rng.uniform(0.5, 2, channels),
        "beta": rng.standard_normal(channels),
        "mean": rng.standard_normal(channels),
        "var": rng.uniform(0.1, 4, channels),
    }
    names = [f"{target}_{key}" for key in values]
    stored = [numpy_helper.from_array(v.astype(np.float32), n) for n, v in zip(names, values.values(), strict=True)]
    return helper.make_node("BatchNormalization", [source, *names], [target], name=name, **attributes), stored


def graph(nodes, stored, *, image=True, opset=17):
    x = builders.value("x", 2, 4, 6, 6) if image else builders.value("x", 2, 4)
    y = builders.value("y", *(["a", "b", "c", "d"] if image else [2, "b"]))
    return builders.model(nodes, [x], [y], stored, opset=opset)


def fold(proto, folder, step=None, **options):
    record = optimize_file(
        builders.save(proto, folder / "m.onnx"),
        folder / "o.onnx",
        [step or FoldBatchNorm()],
        allow_larger=True,
        **options,
    )
    return record, onnx.load(folder / "o.onnx")


def reasons(record):
    return [one["reason"] for one in record.passes[0].effect["skipped"]]


@pytest.mark.parametrize("bias", [True, False, "empty", "shared"])
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose", "Gemm"])
def test_behind(op, bias, tmp_path):
    attributes = {"alpha": 0.5, "beta": 2.0} if op == "Gemm" else {"group": 2, "pads": [1, 1, 1, 1]}
    inputs = ["x", "w"]
    if bias:
        inputs.append("" if bias == "empty" else "b")
    layer = helper.make_node(op, inputs, ["c"], name="layer", **attributes)
    node, stored = norm("c", "n", 6)
    tail = helper.make_node("Mul", ["n", "b" if bias == "shared" and op == "Gemm" else "one"], ["y"])
    if bias == "shared" and op != "Gemm":
        tail = helper.make_node("Mul", ["n", "b4"], ["y"])
    extra = [helper.make_node("Reshape", ["b", "four"], ["b4"])] if bias == "shared" and op != "Gemm" else []
    stored += [builders.weight("w", *WEIGHTS[op]), numpy_helper.from_array(np.float32(1), "one")]
    stored += [builders.weight("b", 6, scale=1), numpy_helper.from_array(np.array([1, 6, 1, 1]), "four")]
    record, made = fold(graph([layer, node, *extra, tail], stored, image=op != "Gemm"), tmp_path)
    assert record.passes[0].effect == {"folded": 1, "batch_normalizations": 1, "skipped": []}
    assert record.equivalence < 1e-5
    assert "BatchNormalization" not in {n.op_type for n in made.graph.node}
    assert "layer" in {n.name for n in made.graph.node}


@pytest.mark.parametrize(
    ("op", "attributes"), [("Conv", {"group": 2}), ("Gemm", {}), ("Gemm", {"transB": 1, "alpha": 0.5})]
)
@pytest.mark.parametrize("bias", [True, False])
def test_before(op, attributes, bias, tmp_path):
    node, stored = norm("x", "n", 4)
    shape = (6, 2, 3, 3) if op == "Conv" else (6, 4) if attributes else (4, 6)
    layer = helper.make_node(op, ["n", "w", "b"][: 3 if bias else 2], ["y"], name="layer", **attributes)
    stored += [builders.weight("w", *shape), builders.weight("b", 6)]
    record, made = fold(graph([node, layer], stored, image=op == "Conv"), tmp_path)
    assert [n.op_type for n in made.graph.node] == [op]
    assert record.equivalence < 1e-5


def test_before_a_padded_convolution_it_stays(tmp_path):
    node, stored = norm("x", "n", 4)
    layer = helper.make_node("Conv", ["n", "w"], ["y"], name="layer", pads=[0, 0, 0, 1])
    with pytest.raises(NoEffectError):
        fold(graph([node, layer], [*stored, builders.weight("w", 6, 4, 3, 3)]), tmp_path)
    record, _ = fold(graph([node, layer], [*stored, builders.weight("w", 6, 4, 3, 3)]), tmp_path, allow_no_effect=True)
    assert reasons(record) == ["nothing to fold it into: it stands behind an input; layer behind it pads with zeros"]
    assert record.passes[0].notes[0].node == "norm"


def conv_and_norm(**attributes):
    node, stored = norm("c", "y", 6, **attributes)
    return helper.make_node("Conv", ["x", "w"], ["c"], name="conv"), node, [*stored, builders.weight("w", 6, 4, 3, 3)]


def test_a_graph_output_keeps_its_name(tmp_path):
    conv, node, stored = conv_and_norm()
    _, made = fold(graph([conv, node], stored), tmp_path)
    assert [n.output[0] for n in made.graph.node] == ["y"]


def left(proto):
    done = optimize(_model(proto), [FoldBatchNorm()], allow_no_effect=True)
    return done.passes[0].effect["skipped"][0]["reason"]


def _model(proto):
    import onnx_ir as ir

    return ir.from_proto(proto)


def test_training_mode_stays():
    conv, node, stored = conv_and_norm(training_mode=1)
    node.output.extend(["running_mean", "running_var"])
    assert "training mode" in left(graph([conv, node], stored))


def test_computed_statistics_stay():
    conv, node, stored = conv_and_norm()
    double = helper.make_node("Add", ["y_gamma", "y_gamma"], ["twice"])
    node.input[1] = "twice"
    assert "is computed" in left(graph([double, conv, node], stored))


def test_a_value_used_elsewhere_stays():
    conv, node, stored = conv_and_norm()
    node.output[0] = "n"
    total = helper.make_node("Add", ["c", "n"], ["y"])
    assert "used elsewhere" in left(graph([conv, node, total], stored))


def test_a_shared_weight_stays():
    conv, node, stored = conv_and_norm()
    node.output[0] = "n"
    other = helper.make_node("Conv", ["x", "w"], ["o"], name="other")
    total = helper.make_node("Add", ["o", "n"], ["y"])
    assert "used by other nodes" in left(graph([conv, node, other, total], stored))


def test_a_local_function_is_not_entered():
    conv, node, stored = conv_and_norm()
    names = ["x", "w", *node.input[1:]]
    function = helper.make_function("local", "f", names, ["y"], [conv, node], [helper.make_opsetid("", 17)])
    call = helper.make_node("f", names, ["y"], domain="local")
    proto = builders.model(
        [call], [builders.value("x", 2, 4, 6, 6)], [builders.value("y", 2, 6, 4, 4)], stored, functions=[function]
    )
    assert "local function" in left(proto)


def test_weights_in_constant_nodes_are_folded(tmp_path):
    conv, node, stored = conv_and_norm()
    nodes = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in stored]
    record, made = fold(graph([*nodes, conv, node], []), tmp_path)
    assert record.passes[0].effect["folded"] == 1
    assert "Conv" in {n.op_type for n in made.graph.node}


def test_a_branch_is_entered(tmp_path):
    conv, node, stored = conv_and_norm()
    branch = helper.make_graph([conv, node], "then", [], [builders.value("y", 2, 6, 4, 4)], stored)
    other = helper.make_graph([conv, node], "else", [], [builders.value("y", 2, 6, 4, 4)], stored)
    choice = helper.make_node("If", ["flag"], ["y"], then_branch=branch, else_branch=other)
    proto = graph([choice], [])
    proto.graph.input.append(builders.value("flag", dtype=onnx.TensorProto.BOOL))
    record, _ = fold(proto, tmp_path)
    assert record.passes[0].effect["folded"] == 2


def test_float16_is_rounded_once(tmp_path):
    """An epsilon of 1e-5 is lost in float16; here it is not."""
    conv, node, stored = conv_and_norm()
    half = [numpy_helper.from_array(numpy_helper.to_array(t).astype(np.float16), t.name) for t in stored]
    proto = graph([conv, node], half)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    record, made = fold(proto, tmp_path)
    assert {t.data_type for t in made.graph.initializer} == {onnx.TensorProto.FLOAT16}
    assert record.equivalence < 1e-2


@pytest.mark.parametrize("build", [builders.cnn, lambda: builders.as_old(builders.cnn())])
def test_simplify_and_the_pass_agree(build, tmp_path):
    _, folded = fold(build(), tmp_path)
    _, simple = fold(build(), tmp_path, Simplify(), force=True)
    weights = [{t.name: numpy_helper.to_array(t) for t in m.graph.initializer} for m in (folded, simple)]
    for name in ("k1", "k1_bias"):
        np.testing.assert_array_equal(weights[0][name], weights[1][name])
    assert "conv1" in {n.name for n in simple.graph.node}
