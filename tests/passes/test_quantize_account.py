"""Wherever a model keeps a weight: int8 and right, or in float with the true reason; never both in the file."""

from __future__ import annotations

import builders
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.errors import NoEffectError
from onnxcomp.passes import QuantizeDynamic, QuantizeStatic
from onnxcomp.pipeline import optimize_file

BOTH = pytest.mark.parametrize("step", [QuantizeDynamic, QuantizeStatic])
X = {"x": np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)}


def graph(nodes, held, *, inputs=None, outputs=None, opset=17):
    return builders.model(
        nodes, inputs or [builders.value("x", "n", 64)], outputs or [builders.value("y", "n", 64)], held, opset=opset
    )


def run(proto, step, tmp_path, data=X, **options):
    """(quantized, total, {node: reason}, SQNR of the worst output, bytes of float matrices that are left)."""
    path = builders.save(proto, tmp_path / "m.onnx")
    record = optimize_file(path, tmp_path / "o.onnx", [step], data=data, allow_larger=True, **options)
    effect = record.passes[0].effect
    left = sum(
        len(t.raw_data)
        for t in onnx.load(tmp_path / "o.onnx").graph.initializer
        if t.data_type == TensorProto.FLOAT and len(t.dims) > 1 and np.prod(t.dims) > 512
    )
    reasons = {s["node"]: s["reason"] for s in effect["skipped"]}
    worst = min(out.sqnr_db for out in record.fidelity.outputs.values())
    return effect["quantized_weights"], effect["total_weights"], reasons, worst, left


def product(x, w, y, name):
    return helper.make_node("MatMul", [x, w], [y], name)


@BOTH
def test_constant_nodes(step, tmp_path):
    held = numpy_helper.from_array(builders.samples(64, 64), "held")
    nodes = [helper.make_node("Constant", [], ["w"], "constant", value=held), product("x", "w", "y", "mm")]
    quantized, total, reasons, sqnr, left = run(graph(nodes, []), step(), tmp_path)
    assert (quantized, total, reasons, left) == (1, 1, {}, 0)
    assert sqnr > 30


@BOTH
@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_either_way(step, transposed, tmp_path):
    """A scale per output channel: of columns or of rows."""
    weight = builders.weight("w", 64, 64)
    array = numpy_helper.to_array(weight) * np.geomspace(1, 1e3, 64, dtype=np.float32)[:, None]
    weight.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array if transposed else array.T), "w"))
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], "fc", transB=transposed)]
    quantized, total, reasons, _, left = run(graph(nodes, [weight, builders.weight("b", 64)]), step(), tmp_path)
    assert (quantized, total, reasons, left) == (1, 1, {}, 0)
    outputs = [outputs_of(tmp_path / name) for name in ("m.onnx", "o.onnx")]
    errors = np.abs(outputs[0] - outputs[1]).max(0) / np.abs(outputs[0]).max(0)
    assert errors.max() < 0.05  # with one scale for all, the smallest channels are lost


def outputs_of(path, feeds=None):
    from onnxcomp import runtime

    return runtime.open_session(path).run(feeds or X)["y"]


@BOTH
def test_a_stored_transpose_too_large_to_fold(step, tmp_path):
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"], "turn", perm=[1, 0]),
        product("x", "t", "h", "up"),
        product("h", "v", "y", "down"),
    ]
    held = [builders.weight("w", 2048, 64), builders.weight("v", 2048, 64)]
    quantized, total, reasons, sqnr, left = run(graph(nodes, held), step(), tmp_path)
    assert (quantized, total, reasons, left) == (2, 2, {}, 0)
    assert sqnr > 28


@BOTH
def test_two_nodes_share_a_weight(step, tmp_path):
    nodes = [product("x", "w", "h", "one"), helper.make_node("Relu", ["h"], ["r"]), product("r", "w", "y", "two")]
    proto = graph(nodes, [builders.weight("w", 64, 64)])
    quantized, total, reasons, sqnr, left = run(proto, step(), tmp_path)
    assert (quantized, total, reasons, left) == (1, 1, {}, 0)
    assert sqnr > 28


@BOTH
@pytest.mark.parametrize(("excluded", "other"), [("one", "two"), ("two", "one")])
def test_a_shared_weight_that_one_node_keeps_in_float(step, excluded, other, tmp_path):
    """The int8 copy would come on top of the float one."""
    nodes = [
        product("x", "w", "h", "one"),
        helper.make_node("Relu", ["h"], ["r"]),
        product("r", "w", "s", "two"),
        product("s", "v", "y", "three"),
    ]
    proto = graph(nodes, [builders.weight("w", 64, 64), builders.weight("v", 64, 64)])
    quantized, total, reasons, _, left = run(proto, step(exclude=(excluded,)), tmp_path)
    assert (quantized, total, left) == (1, 2, 64 * 64 * 4)
    (reason,) = reasons.values()
    assert reason in ("excluded by the user", f"its weight is also used by {excluded}, which stays in float (excluded)")
    assert other in ("one", "two")


def looping(*, own):
    """A Loop whose body multiplies with a weight of its own, or with one that the main graph uses too."""
    state, given = builders.value("state", "n", 64), builders.value("given", "n", 64)
    body = helper.make_graph(
        [product("state", "inner" if own else "w", "given", "body_mm"), helper.make_node("Identity", ["on"], ["go"])],
        "body",
        [builders.value("i", dtype=TensorProto.INT64), builders.value("on", dtype=TensorProto.BOOL), state],
        [builders.value("go", dtype=TensorProto.BOOL), given],
        [builders.weight("inner", 64, 64)] if own else [],
    )
    nodes = [
        product("x", "w", "h", "main_mm"),
        helper.make_node("Loop", ["times", "", "h"], ["s"], "loop", body=body),
        product("s", "v", "y", "last"),
    ]
    times = numpy_helper.from_array(np.array(2, np.int64), "times")
    return graph(nodes, [builders.weight("w", 64, 64), builders.weight("v", 64, 64), times])


@BOTH
def test_a_weight_of_a_loop_body(step, tmp_path):
    quantized, total, reasons, sqnr, _ = run(looping(own=True), step(), tmp_path)
    assert (quantized, total) == (2, 3)
    assert "subgraph" in reasons["body_mm"]
    assert sqnr > 25


@BOTH
def test_a_weight_of_the_main_graph_that_a_loop_body_uses_too(step, tmp_path):
    quantized, total, reasons, sqnr, left = run(looping(own=False), step(), tmp_path)
    assert (quantized, total, left) == (1, 2, 64 * 64 * 4)
    assert list(reasons) == ["main_mm"]
    assert "body_mm" in reasons["main_mm"]
    assert "subgraph" in reasons["main_mm"]
    assert sqnr > 25


@BOTH
def test_weights_of_both_branches(step, tmp_path):
    flags = {"x": np.repeat(X["x"][:, :1, None], 2, 1)[:, :, [0] * 8], "flag": np.ones((64,), bool)}
    with pytest.raises(NoEffectError, match="subgraph"):
        run(builders.branch(), step(), tmp_path, flags)


@BOTH
def test_a_weight_that_is_given_out(step, tmp_path):
    outputs = [builders.value("y", "n", 64), builders.value("w", 64, 64)]
    nodes = [product("x", "w", "h", "one"), product("h", "v", "y", "two")]
    proto = graph(nodes, [builders.weight("w", 64, 64), builders.weight("v", 64, 64)], outputs=outputs)
    quantized, total, reasons, _, left = run(proto, step(), tmp_path)
    assert (quantized, total, left) == (1, 2, 64 * 64 * 4)
    assert "output of the model" in reasons["one"]


@BOTH
def test_a_weight_that_is_used_as_numbers_too(step, tmp_path):
    nodes = [
        product("x", "w", "h", "one"),
        helper.make_node("ReduceSum", ["w"], ["s"], "sum"),
        helper.make_node("Mul", ["h", "s"], ["m"], "mul"),
        product("m", "v", "y", "two"),
    ]
    proto = graph(nodes, [builders.weight("w", 512, 64), builders.weight("v", 64, 64)])
    proto.graph.initializer[0].CopyFrom(builders.weight("w", 64, 2048))
    proto.graph.initializer[1].CopyFrom(builders.weight("v", 2048, 64))
    nodes[1].attribute.append(helper.make_attribute("keepdims", 0))
    quantized, total, _, _, left = run(graph(nodes, list(proto.graph.initializer)), step(), tmp_path)
    # folding computes the sum, or the weight stays in float beside it: never twice in the file
    assert (quantized, left) == (2, 0) or (quantized, left) == (1, 64 * 2048 * 4)
    assert total == 2


@BOTH
def test_a_stored_first_factor(step, tmp_path):
    nodes = [
        product("w", "x", "h", "left"),
        product("h", "v", "y", "right"),
    ]
    inputs, outputs = [builders.value("x", "n", 64, 64)], [builders.value("y", "n", 64, 64)]
    proto = graph(nodes, [builders.weight("w", 64, 64), builders.weight("v", 64, 64)], inputs=inputs, outputs=outputs)
    quantized, total, reasons, sqnr, _ = run(proto, step(), tmp_path, {"x": builders.samples(64, 64, 64)})
    left_out = {} if quantized == 2 else {"left": "it is not the second factor of the MatMul"}
    assert (reasons, total) == (left_out, 2)
    assert step is QuantizeStatic or quantized == 1
    assert sqnr > 25


def test_a_gemm_with_factors_in_dynamic(tmp_path):
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["h"], "scaled", alpha=0.5),
        product("h", "v", "y", "plain"),
    ]
    proto = graph(nodes, [builders.weight("w", 64, 64), builders.weight("v", 64, 64)])
    quantized, _, reasons, sqnr, _ = run(proto, QuantizeDynamic(), tmp_path)
    assert quantized == 1
    assert reasons in ({"scaled": "a Gemm with alpha, beta or transA"}, {})
    assert sqnr > 25


def tied(*, output, rows=3000):
    """A table that is looked up and multiplied with, as language models do."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"], "embed"),
        product("e", "w", "h", "inner"),
    ]
    if output == "Transpose":
        nodes += [helper.make_node("Transpose", ["table"], ["t"], "turn", perm=[1, 0]), product("h", "t", "y", "head")]
    else:
        nodes += [helper.make_node("Gemm", ["h", "table"], ["y"], "head", transB=1)]
    inputs = [builders.value("ids", "n", dtype=TensorProto.INT64)]
    held = [builders.weight("table", rows, 64), builders.weight("w", 64, 64)]
    return graph(nodes, held, inputs=inputs, outputs=[builders.value("y", "n", rows)])


IDS = {"ids": np.random.default_rng(0).integers(0, 900, 200)}


@BOTH
@pytest.mark.parametrize("output", ["Transpose", "Gemm"])
@pytest.mark.parametrize("rows", [900, 3000], ids=["folded", "large"])
def test_a_tied_embedding(step, output, rows, tmp_path):
    quantized, total, reasons, sqnr, left = run(tied(output=output, rows=rows), step(), tmp_path, IDS)
    assert (quantized, total, reasons, left) == (3, 3, {}, 0)
    assert sqnr > 25
    stored = [t for t in onnx.load(tmp_path / "o.onnx").graph.initializer if t.data_type == TensorProto.INT8]
    assert sum(rows * 64 == np.prod(t.dims) for t in stored) == 1
    assert (tmp_path / "o.onnx").stat().st_size < 0.4 * (tmp_path / "m.onnx").stat().st_size


@BOTH
def test_a_tied_square_table_is_stored_twice(step, tmp_path):
    """Which of its scales are those of rows cannot be told by their number."""
    quantized, _, reasons, sqnr, left = run(
        tied(output="Transpose", rows=64), step(), tmp_path, {"ids": IDS["ids"] % 64}
    )
    assert (quantized, reasons, left) == (3, {}, 0)
    assert sqnr > 25


@BOTH
def test_int8_kernels_behind_a_table(step, tmp_path):
    """A product that reads a lookup gets its int8 kernel: ORT dequantized its weight at each run."""
    run(tied(output="Gemm"), step(), tmp_path, IDS)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(tmp_path / "o.onnx", options, providers=["CPUExecutionProvider"])
    ops = [n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert not {"MatMul", "Gemm"} & set(ops)


@BOTH
@pytest.mark.parametrize("output", ["Transpose", "Gemm"])
@pytest.mark.parametrize("excluded", ["embed", "head"])
def test_a_tied_embedding_of_which_one_side_stays_in_float(step, output, excluded, tmp_path):
    proto = tied(output=output)
    quantized, total, reasons, _, left = run(proto, step(exclude=(excluded,)), tmp_path, IDS)
    assert (quantized, total, left) == (1, 2, 3000 * 64 * 4)
    (reason,) = reasons.values()
    assert "excluded" in reason


@BOTH
def test_a_lookup_along_another_axis(step, tmp_path):
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"], "columns", axis=1),
        helper.make_node("Transpose", ["e"], ["t"], perm=[1, 0]),
        product("t", "w", "y", "inner"),
    ]
    inputs = [builders.value("ids", "n", dtype=TensorProto.INT64)]
    proto = graph(nodes, [builders.weight("table", 64, 900), builders.weight("w", 64, 64)], inputs=inputs)
    quantized, total, reasons, _, _ = run(proto, step(), tmp_path, IDS)
    assert (quantized, total) == (1, 2)
    assert "another axis" in reasons["columns"]
