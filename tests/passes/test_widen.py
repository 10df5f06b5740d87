"""float16 and bfloat16 models: float32 inside, the same numbers, and then int8."""

from __future__ import annotations

import builders
import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import real_data
from onnx import TensorProto, helper, numpy_helper

from onnxcomp import runtime
from onnxcomp.errors import NoEffectError
from onnxcomp.model import load
from onnxcomp.passes import CastFloat, QuantizeDynamic, QuantizeStatic
from onnxcomp.passes.quantize.widen import widen
from onnxcomp.pipeline import optimize_file, save

HALF = TensorProto.FLOAT16


def half(proto):
    """The same model with weights, inputs and outputs in float16."""
    for i, tensor in enumerate(proto.graph.initializer):
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            proto.graph.initializer[i].CopyFrom(numpy_helper.from_array(array.astype(np.float16), tensor.name))
    for face in (*proto.graph.input, *proto.graph.output):
        if face.type.tensor_type.elem_type == TensorProto.FLOAT:
            face.type.tensor_type.elem_type = HALF
    return proto


def mixed():
    """Casts, a Constant, a filled tensor and a branch, all of float16."""
    then = helper.make_graph(
        [
            helper.make_node("Constant", [], ["two"], value=numpy_helper.from_array(np.float16([2]))),
            helper.make_node("Mul", ["h", "two"], ["t"]),
        ],
        "then",
        [],
        [builders.value("t", "n", 16, dtype=HALF)],
    )
    other = helper.make_graph(
        [helper.make_node("Add", ["h", "inner"], ["o"])],
        "else",
        [],
        [builders.value("o", "n", 16, dtype=HALF)],
        [numpy_helper.from_array(np.ones(16, np.float16), "inner")],
    )
    nodes = [
        helper.make_node("Cast", ["ids"], ["c"], to=HALF),
        helper.make_node("Shape", ["c"], ["s"]),
        helper.make_node("ConstantOfShape", ["s"], ["f"], value=numpy_helper.from_array(np.float16([0.5]))),
        helper.make_node("Add", ["c", "f"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["h"], name="product"),
        helper.make_node("If", ["flag"], ["y"], then_branch=then, else_branch=other),
        helper.make_node("Cast", ["y"], ["z"], to=TensorProto.FLOAT),
    ]
    inputs = [builders.value("ids", "n", 8, dtype=TensorProto.INT64), builders.value("flag", dtype=TensorProto.BOOL)]
    outputs = [builders.value("y", "n", 16, dtype=HALF), builders.value("z", "n", 16)]
    weight = numpy_helper.from_array(builders.samples(8, 16).astype(np.float16), "w")
    return builders.model(nodes, inputs, outputs, [weight])


@pytest.mark.parametrize("flag", [True, False])
def test_the_graph_computes_the_same_and_nothing_inside_is_narrow(flag, tmp_path):
    path = builders.save(mixed(), tmp_path / "m.onnx")
    model = load(path)
    widen(model)
    save(model, tmp_path / "w.onnx")
    feeds = {"ids": np.arange(24).reshape(3, 8) % 5, "flag": np.array(flag)}
    before, after = (runtime.open_session(p).run(feeds) for p in (path, tmp_path / "w.onnx"))
    for name in ("y", "z"):
        assert before[name].dtype == after[name].dtype
        np.testing.assert_allclose(before[name], after[name], rtol=2e-3, atol=2e-3)
    left = [v.name for n in model.graph.all_nodes() for v in n.outputs if v.dtype == ir.DataType.FLOAT16]
    assert left == ["y"]
    assert {v.const_value.dtype for g in model.graphs() for v in g.initializers.values()} == {ir.DataType.FLOAT}


@pytest.mark.parametrize("step", [QuantizeDynamic(), QuantizeStatic()], ids=["dynamic", "static"])
def test_int8_of_a_float16_model(step, tmp_path):
    path = builders.save(half(builders.mlp(width=2048)), tmp_path / "m.onnx")
    data = {"x": builders.samples(64, 16).astype(np.float16)}
    record = optimize_file(path, tmp_path / "o.onnx", [step], data=data)
    effect = record.passes[0].effect
    assert (effect["quantized_weights"], effect["skipped"]) == (2, [])
    assert any("float16" in note.reason for note in record.passes[0].notes)
    assert record.fidelity.outputs["y"].sqnr_db > 28
    assert record.size_ratio < 0.85
    session = runtime.open_session(tmp_path / "o.onnx")
    assert {s.dtype for s in (*session.signature.inputs, *session.signature.outputs)} == {"float16"}


def test_a_result_larger_than_the_float16_model_is_a_failure(tmp_path):
    path = builders.save(half(builders.mlp(width=2048)), tmp_path / "m.onnx")
    data = {"x": builders.samples(64, 16).astype(np.float16)}
    with pytest.raises(NoEffectError, match="larger"):
        optimize_file(path, tmp_path / "o.onnx", [QuantizeDynamic(exclude=("fc1",))], data=data)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", [QuantizeDynamic(), QuantizeStatic()], ids=["dynamic", "static"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_int8_of_what_cast_float_made(step, dtype, tmp_path):
    path = builders.save(builders.mlp(width=2048), tmp_path / "m.onnx")
    data = {"x": builders.samples(64, 16)}
    optimize_file(path, tmp_path / "narrow.onnx", [CastFloat(dtype=dtype)], data=data)
    record = optimize_file(tmp_path / "narrow.onnx", tmp_path / "o.onnx", [step], data=data)
    effect = record.passes[0].effect
    assert (effect["quantized_weights"], effect["skipped"]) == (2, [])
    assert any(f"no {dtype}" in note.reason for note in record.passes[0].notes)
    assert record.fidelity.outputs["y"].sqnr_db > 28
    assert record.size_ratio < 0.85
    ops = [n.op_type for n in onnx.load(tmp_path / "o.onnx").graph.node]
    assert "MatMulInteger" in ops or "QuantizeLinear" in ops


def test_bfloat16_numbers_are_kept(tmp_path):
    numbers = np.array([[1.5, -3.0], [2.0**-100, 3e38]], np.float32)
    held = ir.Tensor(numbers.astype(ml_dtypes.bfloat16), dtype=ir.DataType.BFLOAT16, name="w")
    model = load(builders.save(builders.mlp(), tmp_path / "m.onnx"))
    model.graph.register_initializer(ir.Value(name="w", const_value=held))
    widen(model)
    made = model.graph.initializers["w"].const_value
    assert made.dtype == ir.DataType.FLOAT
    np.testing.assert_array_equal(made.numpy(), numbers.astype(ml_dtypes.bfloat16).astype(np.float32))


def test_squeezenet_in_float16(shared, tmp_path):
    arrays, _ = real_data.samples("winml_SqueezeNet_fp16", shared)
    source = shared / "models/winml_SqueezeNet_fp16.onnx"
    record = optimize_file(source, tmp_path / "o.onnx", [QuantizeStatic()], data=arrays, batch_size=4)
    assert record.passes[0].effect["quantized_weights"] == 26
    assert record.size_ratio < 0.55
    assert record.fidelity.outputs["softmaxout_1"].cosine_mean > 0.9
